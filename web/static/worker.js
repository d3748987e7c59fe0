// The dedicated worker that owns the engine. Messages that come before the module is ready are kept for it.
import init from './engine.js';
const early = [];
self.onmessage = (event) => early.push(event);
await init();
// The module has put its own handler in place.
for (const event of early) self.onmessage(event);
