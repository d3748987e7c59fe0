// Measures llama.cpp's Vulkan back end on one GGUF file and prints a last line of JSON.
// usage: node peers.mjs FOLDER_WITH_NODE_MODULES MODEL PROMPT_TOKENS NEW_TOKENS
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';

const [folder, model, prompt, generated] = process.argv.slice(2);
const llama = createRequire(join(folder, 'peers.mjs'))('@fugood/llama.node');

// Where llama.cpp put the model is only in its log: a back end that cannot start leaves everything on the CPU.
let log = '';
llama.addNativeLogListener((_level, text) => { log += `${text.trimEnd()}\n`; });
await llama.toggleNativeLog(true);

const context = await llama.loadModel({
  model,
  lib_variant: 'vulkan',
  devices: ['Vulkan0'],
  n_gpu_layers: 99,
  n_ctx: Math.max(512, Number(prompt) + Number(generated)),
  n_parallel: 1,
});
await setTimeout(1000); // the log arrives by the event loop
const [, offloaded = 0, layers] = log.match(/offloaded (\d+)\/(\d+) layers to GPU/) ?? [];
const [, device] = log.match(/using device (Vulkan0 \(.*?\)) \(/) ?? [];
if (!device || offloaded !== layers || context.getUsedDevices().join() !== 'Vulkan0') {
  console.error(log.split('\n').filter((line) => /vulkan|device|offload/i.test(line)).join('\n'));
  console.error(`llama.cpp put ${offloaded} of ${layers ?? 'its'} layers on Vulkan0; all of them are needed`);
  process.exit(1);
}

// The first round compiles pipelines; the second is what counts.
await context.bench(Number(prompt), Number(generated), 1, 1);
const result = await context.bench(Number(prompt), Number(generated), 1, 1);
console.log(JSON.stringify({
  device,
  prefill_tokens_per_s: result.speedPp,
  decode_tokens_per_s: result.speedTg,
}));
process.exit(0);
