// The page's engine, spoken to as the page does. Its own measurement begins with a warm-up.
const engine = new Worker('/worker.js', { type: 'module' });
const ask = (message, answer) => new Promise((resolve, reject) => {
  engine.onmessage = (event) => {
    const { type, result } = JSON.parse(event.data);
    if (type !== answer) return;
    if (result.Ok) resolve(result.Ok);
    else reject(new Error(JSON.stringify(result.Err)));
  };
  engine.onerror = (event) => reject(new Error(`the worker crashed: ${event.message}`));
  engine.postMessage({ json: JSON.stringify(message) });
});
const { context, compute, prompt_tokens, new_tokens } = args;
await ask({ type: 'load', model: { from: 'url', url: args.model }, context, compute }, 'loaded');
return ask({ type: 'bench', prompt_tokens, new_tokens }, 'measured');
