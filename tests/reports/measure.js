// Overflow: what is wider than its window, what scrolls sideways, texts of a picture that leave it or lie on one another.
// Size: of every text of a picture as it is shown, in pixels, so that a picture that was shrunk instead of redrawn is found.
// Place: where the notice ends, and where the first heading, figure or tile begins.
// Contrast: of every text against what is behind it, and of every kind of shape of a picture against the page (WCAG 2.2).
function channel(v) { v /= 255; return v <= 0.04045 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4); }
function parse(c) { const m = c.match(/[\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; }
function light(c) { return 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]); }
function contrast(a, b) { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); }
function behind(view, e) {
  for (; e; e = e.parentElement) { const c = parse(view.getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; }
  return [255, 255, 255, 1];
}
function measure(frame) {
  const view = frame.contentWindow, doc = frame.contentDocument, root = doc.documentElement, found = {};
  found.width = root.clientWidth; found.scroll = root.scrollWidth; found.height = root.scrollHeight;
  const told = e => (e.tagName + '.' + (e.getAttribute('class') || '') + ' ' + (e.textContent || '').trim()).slice(0, 70);
  const seen = e => e.getClientRects().length > 0;
  found.wide = []; found.texts = []; found.shapes = []; found.left = []; found.over = [];
  for (const e of doc.querySelectorAll('body *')) {
    if (!seen(e)) continue;
    if (e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(view.getComputedStyle(e).overflowX)) found.wide.push('scrolls: ' + told(e));
    if (!e.closest('svg') && e.getBoundingClientRect().right > root.clientWidth + 0.5) found.wide.push(told(e));
  }
  const walker = doc.createTreeWalker(doc.body, 4), done = new Set();
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || done.has(e) || !seen(e) || /STYLE|SCRIPT/.test(e.tagName)) continue;
    done.add(e);
    const style = view.getComputedStyle(e), colour = parse(e.closest('svg') ? style.fill : style.color);
    const ratio = contrast(colour, behind(view, e));
    if (ratio < 4.5) found.texts.push(told(e) + ' ' + ratio.toFixed(2));
  }
  const kinds = new Set();
  for (const e of doc.querySelectorAll('svg path, svg rect, svg circle')) {
    const name = e.getAttribute('class') || '';
    if (!name || kinds.has(name) || /grid|behind|cell|layer|unscored/.test(name) || !seen(e)) continue;
    kinds.add(name);
    const style = view.getComputedStyle(e), paints = [style.fill, style.stroke].filter(c => c.startsWith('rgb'));
    const best = Math.max(...paints.map(c => contrast(parse(c), behind(view, e))));
    if (best < 3) found.shapes.push(name + ' ' + best.toFixed(2));
  }
  found.small = []; found.least = Infinity;
  for (const svg of doc.querySelectorAll('svg')) {
    if (!seen(svg)) continue;
    const box = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll('text')].map(t => [t, t.getBoundingClientRect()]);
    texts.forEach(([t, r], i) => {
      const shown = t.getScreenCTM(), size = parseFloat(view.getComputedStyle(t).fontSize) * Math.hypot(shown.c, shown.d);
      found.least = Math.min(found.least, size);
      if (size < 9) found.small.push(told(t) + ' ' + size.toFixed(1));
      if (r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 2 || r.bottom > box.bottom + 2) found.left.push(told(t));
      for (const [o, q] of texts.slice(i + 1)) {
        const across = Math.min(r.right, q.right) - Math.max(r.left, q.left), down = Math.min(r.bottom, q.bottom) - Math.max(r.top, q.top);
        if (across > 1 && down > 4) found.over.push(told(t) + ' | ' + told(o));
      }
    });
  }
  const tops = [...doc.querySelectorAll('h1, figure, .tile, svg[role=img]')].filter(seen).map(e => e.getBoundingClientRect().top);
  const notice = doc.querySelector('.notice');
  found.notice = notice && seen(notice) ? notice.getBoundingClientRect().bottom : null; found.begins = Math.min(...tops);
  found.kinds = [...kinds].sort();
  return found;
}
window.onload = () => {
  const all = [...document.querySelectorAll('iframe')].map(measure);
  document.body.innerHTML = '<pre id="found"></pre>';
  document.getElementById('found').textContent = JSON.stringify(all);
};
