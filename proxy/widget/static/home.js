// The page for newcomers: try an account, see what the proxy says, copy the line.
(() => {
  'use strict';

  const SHOWN = ['Cache-Status', 'Age', 'Feed-Updated', 'Feed-Updated-At', 'Cache-Control', 'ETag', 'Retry-After'];
  const byId = (id) => document.getElementById(id);
  const feed = byId('feed');

  /** An actor may hold anything: in an attribute it is escaped, in an address encoded. */
  const escaped = (text) => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);

  function fillLines(actor) {
    for (const code of document.querySelectorAll('code[data-template]')) {
      const value = code.id === 'frame' ? encodeURIComponent(actor) : escaped(actor);
      code.textContent = code.dataset.template.replace('{}', () => value);
    }
  }

  function row(name, value) {
    const line = document.createElement('tr');
    const head = Object.assign(document.createElement('th'), { scope: 'row', textContent: name });
    line.append(head, Object.assign(document.createElement('td'), { textContent: value }));
    return line;
  }

  async function showHeaders() {
    const url = feed.address();
    try {
      const response = await fetch(url, { credentials: 'omit' });
      if (url !== feed.address()) return;
      const said = SHOWN.map((name) => [name, response.headers.get(name)]).filter(([, value]) => value);
      byId('headers').replaceChildren(row('Status', String(response.status)), ...said.map(([name, value]) => row(name, value)));
    } catch {
      byId('headers').replaceChildren(row('Status', 'no answer'));
    }
  }

  function show(actor) {
    byId('actor').value = actor;
    if (feed.getAttribute('actor') !== actor) feed.setAttribute('actor', actor);
    fillLines(actor);
    showHeaders();
  }

  byId('form').addEventListener('submit', (event) => {
    event.preventDefault();
    const actor = byId('actor').value.trim().replace(/^@/, '');
    history.replaceState(null, '', `?actor=${encodeURIComponent(actor)}`);
    show(actor);
  });

  for (const button of document.querySelectorAll('button[data-copies]')) {
    button.addEventListener('click', async () => {
      const code = byId(button.dataset.copies);
      try {
        await navigator.clipboard.writeText(code.textContent);
        byId('copied').textContent = 'Copied.';
      } catch {
        getSelection().selectAllChildren(code); // no access to the clipboard: one key away
        byId('copied').textContent = 'Selected: press Ctrl+C or ⌘C.';
      }
    });
  }

  show(new URLSearchParams(location.search).get('actor') || byId('actor').value);
})();
