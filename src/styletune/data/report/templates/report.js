(() => {
  const $ = id => document.getElementById(id);
  const data = JSON.parse($('data').textContent), sheet = $('sheet'), dialog = $('zoom');
  if (!sheet) return;
  const cards = [...sheet.children], order = new Map(cards.map((card, i) => [card, i]));
  const opens = cards.map(card => card.querySelector('.open'));
  const images = data.images, chosen = {flag: new Set(), kind: new Set(), side: new Set(), origin: new Set()};
  const words = images.map(image => `${image.name}\n${image.caption}`.toLowerCase());
  let group = null, shown = cards.slice(), current = 0, large = null;

  // Thousands of inlined pictures would take seconds to load: in large sets they are the text of
  // noscript elements, and each becomes a picture when it gets close to the window.
  const draw = card => { const held = card.querySelector('noscript'); if (held) held.outerHTML = held.textContent; };
  const near = new IntersectionObserver(changes => changes.filter(one => one.isIntersecting).forEach(one => {
    draw(one.target); near.unobserve(one.target);
  }), {rootMargin: '800px'});
  cards.filter(card => card.querySelector('noscript')).forEach(card => near.observe(card));
  window.addEventListener('beforeprint', () => cards.forEach(draw));

  // One Tab stop for the whole sheet; arrow keys move inside it.
  opens.forEach((open, i) => { open.tabIndex = i ? -1 : 0; });
  const number = card => order.get(card);
  const makeCurrent = i => { opens[current].tabIndex = -1; current = i; opens[i].tabIndex = 0; };

  const passes = {
    flag: (image, set) => image.flags.some(flag => set.has(flag)) || (set.has('') && !image.flags.length),
    kind: (image, set) => image.groups.some(g => set.has(data.kinds[g])),
    side: (image, set) => set.has(image.side),
    origin: (image, set) => set.has(image.origin),
  };
  const filter = () => {
    const search = $('search').value.trim().toLowerCase();
    const keys = Object.keys(chosen).filter(key => chosen[key].size);
    cards.forEach(card => {
      const i = number(card), image = images[i];
      card.hidden = !(keys.every(key => passes[key](image, chosen[key])) && words[i].includes(search)
        && (group === null || image.groups.includes(group)));
    });
    shown = [...sheet.children].filter(card => !card.hidden);
    $('status').textContent = shown.length === cards.length ? `all ${cards.length} images`
      : `${shown.length} of ${cards.length} images`;
    $('nothing').hidden = shown.length > 0;
    $('reset').hidden = !keys.length && !search && group === null;
    if (shown.length && cards[current].hidden) makeCurrent(number(shown[0]));
  };
  const buttons = [...document.querySelectorAll('[data-filter]')];
  const press = () => buttons.forEach(b => b.setAttribute('aria-pressed', chosen[b.dataset.filter].has(b.dataset.value)));
  const clear = () => { Object.values(chosen).forEach(set => set.clear()); group = null; $('search').value = ''; press(); };
  buttons.forEach(button => button.addEventListener('click', () => {
    const set = chosen[button.dataset.filter], value = button.dataset.value;
    if (!set.delete(value)) set.add(value);
    press(); filter();
  }));
  $('search').addEventListener('input', filter);
  $('reset').addEventListener('click', () => { clear(); filter(); $('search').focus(); });
  const showOnly = change => { clear(); change(); press(); filter(); $('images').scrollIntoView(); if (shown.length) go(number(shown[0])); };
  document.querySelectorAll('[data-only-flag]').forEach(b => b.addEventListener('click', () => showOnly(() => chosen.flag.add(b.dataset.onlyFlag))));
  document.querySelectorAll('[data-only-group]').forEach(b => b.addEventListener('click', () => showOnly(() => { group = +b.dataset.onlyGroup; })));

  const names = new Intl.Collator('en', {numeric: true}), last = Number.MAX_SAFE_INTEGER;
  const firstGroup = image => image.groups.length ? image.groups[0] : last;
  const sorts = {
    order: (a, b) => a - b,
    name: (a, b) => names.compare(images[a].name, images[b].name),
    size: (a, b) => images[b].pixels - images[a].pixels,
    group: (a, b) => firstGroup(images[a]) - firstGroup(images[b]),
    lost: (a, b) => images[b].lost - images[a].lost,
    flags: (a, b) => images[b].flags.length - images[a].flags.length,
  };
  $('sort').addEventListener('change', () => {
    const by = sorts[$('sort').value];
    sheet.append(...cards.slice().sort((a, b) => by(number(a), number(b)) || number(a) - number(b)));
    filter();
    if (shown.length) makeCurrent(number(shown[0]));
  });
  $('crop').addEventListener('click', () => {
    const off = document.documentElement.classList.toggle('nocrop');
    $('crop').setAttribute('aria-pressed', !off);
  });

  const go = i => { makeCurrent(i); opens[i].focus(); };
  const move = steps => {
    const at = shown.indexOf(cards[current]), next = shown[Math.max(0, Math.min(shown.length - 1, at + steps))];
    if (!next) return;
    if (dialog.open) { makeCurrent(number(next)); fill(); } else go(number(next));
  };
  const columns = () => getComputedStyle(sheet).gridTemplateColumns.split(' ').length;

  const line = (parent, tag, text, name) => {
    const made = document.createElement(tag);
    made.textContent = text; made.dir = 'auto';
    if (name) made.className = name;
    parent.append(made);
    return made;
  };
  const fill = () => {
    draw(cards[current]);
    large = current;
    const image = images[current];
    $('ztitle').textContent = image.name;
    $('zsub').textContent = `${shown.indexOf(cards[current]) + 1} of ${shown.length}`;
    $('zpicture').replaceChildren(opens[current].querySelector('.tile').cloneNode(true));
    $('zcaption').textContent = image.caption || 'no caption';
    $('zcaption').classList.toggle('none', !image.caption);
    $('zmachine').hidden = !cards[current].querySelector('.machine');
    $('dfindings').replaceChildren();
    image.findings.map(i => data.findings[i]).forEach(finding => {
      const item = line($('dfindings'), 'li', '', `k-${finding.severity}`);
      line(item, 'b', `${finding.sign} ${finding.label}`);
      line(item, 'p', finding.message);
      if (finding.fix) line(item, 'p', finding.severity === 'fact' ? finding.fix : `To do: ${finding.fix}`);
    });
    $('zdetails').replaceChildren();
    image.details.forEach(([label, text]) => { line($('zdetails'), 'dt', label); line($('zdetails'), 'dd', text); });
  };
  const open = i => { makeCurrent(i); fill(); dialog.showModal(); $('zclose').focus(); };
  sheet.addEventListener('click', event => {
    const button = event.target.closest('.open');
    if (button) open(number(button.closest('.card')));
  });
  sheet.addEventListener('focusin', event => {
    const card = event.target.closest('.card');
    if (card) makeCurrent(number(card));
  });
  // Closing focuses the image shown last, not the one that opened the view; immediately, because
  // the browser reports a closed dialog later: possibly after the next key, which may have opened
  // the view again.
  const leave = () => {
    if (large === null) return;
    const last = large;
    large = null; dialog.close(); go(last);
  };
  $('zclose').addEventListener('click', leave);
  dialog.addEventListener('click', event => { if (event.target === dialog) leave(); });
  dialog.addEventListener('close', () => { if (!dialog.open) leave(); });
  document.querySelectorAll('[data-move]').forEach(b => b.addEventListener('click', () => move(+b.dataset.move)));

  // A link to an image that is filtered out shows all images again.
  document.addEventListener('click', event => {
    const link = event.target.closest('a[href^="#i"]'), i = link ? +link.hash.slice(2) : NaN;
    if (!(i in cards)) return;
    event.preventDefault();
    if (cards[i].hidden) { clear(); filter(); }
    history.replaceState(null, '', link.hash);
    cards[i].scrollIntoView({block: 'center'});
    makeCurrent(i); opens[i].focus({preventScroll: true});
  });

  const arrows = {ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: () => -columns(), ArrowDown: () => columns()};
  const letters = {
    j: () => move(1), k: () => move(-1),
    '/': () => { if (!dialog.open) { $('search').focus(); $('search').select(); } },
    '?': () => { if (!dialog.open) toggleHelp(); },
  };
  const toggleHelp = () => {
    const off = !$('help').hidden;
    $('help').hidden = off;
    $('helpbutton').setAttribute('aria-expanded', !off);
    if (!off) $('help').scrollIntoView({block: 'nearest'});
  };
  $('helpbutton').addEventListener('click', toggleHelp);
  document.addEventListener('keydown', event => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === 'Escape' && dialog.open) { event.preventDefault(); leave(); return; }
    const active = document.activeElement, inSheet = active.classList.contains('open');
    if (active.matches('input[type=search],select')) {
      if (event.key === 'Escape' && active === $('search')) { active.value = ''; filter(); }
      if (event.key === 'Enter' && active === $('search') && shown.length) { event.preventDefault(); go(number(shown[0])); }
      return;
    }
    if (event.key in arrows && (inSheet || dialog.open)) {
      event.preventDefault();
      move(dialog.open && event.key === 'ArrowUp' ? -1 : dialog.open && event.key === 'ArrowDown' ? 1 : arrows[event.key]());
    } else if ((event.key === 'Home' || event.key === 'End') && inSheet) {
      event.preventDefault(); move(event.key === 'Home' ? -cards.length : cards.length);
    } else if (event.key in letters && $('letters').checked) {
      event.preventDefault(); letters[event.key]();
    }
  });
  filter();
})();
