// The live pill, ages that tick, copying, "select all", two keys: each page is complete without.
document.documentElement.classList.add('js');
document.addEventListener('DOMContentLoaded', () => {
  const pill = document.getElementById('live'), [{responseStart}] = performance.getEntriesByType('navigation');
  const skew = performance.timeOrigin + responseStart - document.body.dataset.now; let connection, heard = Date.now(), lost = 0;
  const span = seconds => {
    const units = [[86400, 'd'], [3600, 'h'], [60, 'min']], whole = Math.max(0, Math.floor(seconds));
    const at = units.findIndex(([size]) => whole >= size);
    if (at < 0) return `${whole} s`; const [size, unit] = units[at], rest = at < 2 ? Math.floor(whole % size / units[at + 1][0]) : 0;
    return `${Math.floor(whole / size)} ${unit}${rest ? ` ${rest} ${units[at + 1][1]}` : ''}`;
  };
  const tick = () => {
    const now = Date.now();
    if (connection && !lost && !document.hidden && now - heard > 12000) { lost = heard; connection.reader?.cancel(); }
    if (pill && (connection || lost || now - heard > 3000)) {
      pill.dataset.state = lost || !connection ? 'lost' : 'live';
      pill.textContent = lost ? `reconnecting since ${span((now - lost) / 1000)}` : connection ? 'live' : 'connecting';
    }
    for (const time of document.querySelectorAll('time[data-at]')) { // clocks differ a little: what is new is no future
      const seconds = (now - skew - time.dataset.at) / 1000, text = seconds <= -1 ? `in ${span(-seconds)}` : span(seconds);
      if (time.textContent !== text) time.textContent = text;
    }
  };
  const alive = event => { connection = event.detail.connection; heard = Date.now(); if (lost) { lost = 0; tick(); } };
  for (const name of ['after:connection', 'after:message']) document.addEventListener(`htmx:sse:${name}`, alive);
  for (const name of ['error', 'close']) document.addEventListener(`htmx:sse:${name}`, () => { lost ||= Date.now(); tick(); });
  document.addEventListener('visibilitychange', () => { heard = Date.now(); });
  document.addEventListener('click', ({target}) => {
    const from = target.closest('[data-copy]');
    if (from) navigator.clipboard.writeText(document.querySelector(from.dataset.copy).textContent).then(() => { from.textContent = 'Copied'; });
    if (target.dataset.all) for (const box of document.getElementsByName(target.dataset.all)) box.checked = target.checked;
  });
  document.addEventListener('change', ({target}) => { if ('submit' in target.dataset) target.form.requestSubmit(); });
  document.addEventListener('keydown', event => {
    const typing = event.target.closest('input, textarea, select') || event.ctrlKey || event.metaKey || event.altKey;
    const found = !typing && document.querySelector({'/': 'input[type=search]', '?': 'nav a[href="/help"]'}[event.key] ?? 'none');
    if (found) { event.preventDefault(); event.key === '/' ? found.focus() : found.click(); }
  });
  setInterval(tick, 1000);
});
