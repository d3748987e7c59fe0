// Starts the page. A file of its own, because the page's Content-Security-Policy allows no inline scripts.
import init from './page.js';
await init();
