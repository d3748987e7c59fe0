// The page's worker on a GPU whose memory is counted, and as scarce as a test wants it: on the channel `gpu` it is told how
// much there is and whether it runs out, now or behind so many `submits`, and answers what is held.
import init from './engine.js';

const id = crypto.randomUUID();
let limit = Infinity;
// Bytes of the buffers of each device that is open.
const devices = new Map();
const held = () => [...devices.values()].reduce((sum, bytes) => sum + bytes, 0);

// More than any GPU has: the device says itself that it is out of memory.
const exhaust = (device) => {
  const { maxTextureDimension2D: side, maxTextureArrayLayers: layers } = device.limits;
  const usage = GPUTextureUsage.TEXTURE_BINDING;
  device.createTexture({ size: [side, side, layers], format: 'rgba32float', usage });
};

const { requestDevice } = GPUAdapter.prototype;
GPUAdapter.prototype.requestDevice = async function (...args) {
  const device = await requestDevice.apply(this, args);
  devices.set(device, 0);
  return device;
};
const { createBuffer, destroy: destroyDevice } = GPUDevice.prototype;
const owners = new WeakMap();
GPUDevice.prototype.createBuffer = function (descriptor) {
  if (held() + descriptor.size > limit) {
    exhaust(this);
    // What a device gives that has no memory: a buffer that is not valid.
    this.pushErrorScope('validation');
    const invalid = createBuffer.call(this, { ...descriptor, usage: 0 });
    this.popErrorScope();
    return invalid;
  }
  const buffer = createBuffer.call(this, descriptor);
  owners.set(buffer, this);
  if (devices.has(this)) devices.set(this, devices.get(this) + descriptor.size);
  return buffer;
};
const { destroy: destroyBuffer } = GPUBuffer.prototype;
GPUBuffer.prototype.destroy = function () {
  const owner = owners.get(this);
  if (devices.has(owner)) devices.set(owner, devices.get(owner) - this.size);
  owners.delete(this);
  destroyBuffer.call(this);
};
// A device that is destroyed takes all its buffers with it.
GPUDevice.prototype.destroy = function () {
  devices.delete(this);
  destroyDevice.call(this);
};

// Work for the queue that is left until something is to happen.
let countdown;
const { submit } = GPUQueue.prototype;
GPUQueue.prototype.submit = function (...args) {
  submit.apply(this, args);
  if (countdown && --countdown.submits === 0) obey(countdown);
};
const obey = (order) => {
  limit = order.limit ?? limit;
  if (order.exhaust) [...devices.keys()].forEach(exhaust);
};

const early = [];
self.onmessage = (event) => early.push(event);
const { memory } = await init();
for (const event of early) self.onmessage(event);

const channel = new BroadcastChannel('gpu');
channel.onmessage = ({ data }) => {
  if (data.held) return;
  if (data.submits) countdown = data;
  else obey(data);
  channel.postMessage({ held: { id, bytes: memory.buffer.byteLength, devices: devices.size, gpu: held() } });
};
