// Starts the page. A file of its own, because the page's Content-Security-Policy allows no inline scripts.
try {
  // Before anything is painted in the wrong colours.
  const theme = localStorage.getItem('tread.theme');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing: the system's colours.
}
const say = (text) => {
  const place = document.getElementById('loading');
  if (place) place.textContent = text;
};
if (typeof WebAssembly === 'object') {
  try {
    const { default: init } = await import('./page.js');
    await init();
  } catch (error) {
    say(`The page could not be loaded (${error.message}). Reload it; if that does not help, see whether the server still runs.`);
    throw error;
  }
} else {
  say('This browser has no WebAssembly, or it is switched off. Tread’s page needs it: use another browser, or allow it for this page.');
}
