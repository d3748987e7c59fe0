// llama.cpp's build for browsers.
const llama = await import('/peer/index.js');

// Where it put the layers is only in its log: it names WebGPU as its device whenever that was asked for.
let log = '';
llama.addNativeLogListener((_level, text) => { log += `${text.trimEnd()}\n`; });
await llama.toggleNativeLog(true);
const context = await llama.loadModel({
  model: args.model,
  n_ctx: args.context,
  n_gpu_layers: args.gpu_layers,
  wasm: { cacheDownloads: false },
});

// Prompts of as many tokens as wanted, each with a first word of its own: nothing is left of those before.
let surplus = 0;
const complete = async (word, n_predict) => {
  const text = `${word} ${'the cat sat on the mat while rain fell on the roof and '.repeat(args.prompt_tokens)}`;
  const { tokens } = await context.tokenize(text);
  const prompt = await context.detokenize(tokens.slice(0, args.prompt_tokens - surplus));
  const start = performance.now();
  const { timings } = await context.completion({ prompt, n_predict, temperature: 0, ignore_eos: true });
  return { seconds: (performance.now() - start) / 1000, ...timings };
};
const warm = await complete('Yesterday', 2);
// It may put a token of its own before each.
surplus = warm.prompt_n - args.prompt_tokens;
// Tokens are handed over when all are there. A completion of one token says how early the first could be.
const first = await complete('Today', 1);
const whole = await complete('Tomorrow', args.new_tokens);
if (whole.predicted_n !== args.new_tokens - 1 || Math.abs(whole.prompt_n - args.prompt_tokens) > 1) {
  throw new Error(`llama.cpp did something else: ${JSON.stringify(whole)}`);
}
return {
  device: await device(),
  time_to_first_token_s: first.seconds,
  prefill_tokens_per_s: whole.prompt_per_second,
  decode_tokens_per_s: whole.predicted_per_second,
};

async function device() {
  const layers = {};
  for (const [, name] of log.matchAll(/layer +\d+ assigned to device ([^,\s]+)/g)) {
    layers[name] = (layers[name] ?? 0) + 1;
  }
  const count = Object.values(layers).reduce((sum, n) => sum + n, 0);
  if (count === 0) throw new Error(`llama.cpp does not say where its layers are:\n${log}`);
  const [, threads] = context.getSystemInfo().match(/n_threads = (\d+)/) ?? [];
  const adapter = await navigator.gpu?.requestAdapter();
  const { vendor, architecture, description } = adapter?.info ?? {};
  const names = Object.entries(layers).map(([name, n]) => {
    const detail = name === 'CPU'
      ? `${threads ?? '?'} thread${threads === '1' ? '' : 's'}`
      : [vendor, architecture, description].filter(Boolean).join(' ');
    return `${name} (${detail})${n < count ? ` for ${n} of ${count} layers` : ''}`;
  });
  const fell = args.gpu_layers > 0 && layers.CPU === count;
  return names.join(', ') + (fell ? `: ${reason(adapter)}` : '');
}

/** Why the WebGPU build computes on the CPU. */
function reason(adapter) {
  if (!adapter) return 'this browser has no WebGPU adapter';
  if (!adapter.features.has('shader-f16')) return 'its WebGPU back end needs shader-f16, which this adapter lacks';
  return log.split('\n').find((line) => /webgpu/i.test(line)) ?? 'its log does not say why';
}
