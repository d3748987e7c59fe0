// The page's worker, which here also says what it holds: WebAssembly's memory and GPU devices.
import init from './engine.js';

const devices = new Set();
const { requestDevice } = GPUAdapter.prototype;
GPUAdapter.prototype.requestDevice = async function (...args) {
  const device = await requestDevice.apply(this, args);
  devices.add(device);
  return device;
};
// A device that is destroyed takes all its buffers with it.
const { destroy } = GPUDevice.prototype;
GPUDevice.prototype.destroy = function () {
  devices.delete(this);
  destroy.call(this);
};

const early = [];
self.onmessage = (event) => early.push(event);
const { memory } = await init();
const engine = self.onmessage;
self.onmessage = (event) => {
  if (event.data.json) return engine.call(self, event);
  self.postMessage(JSON.stringify({ type: 'held', bytes: memory.buffer.byteLength, devices: devices.size }));
};
for (const event of early) self.onmessage(event);
