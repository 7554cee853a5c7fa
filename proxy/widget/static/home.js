// The page for newcomers: try an account, see what the proxy says, copy the line.
(() => {
  'use strict';

  const SHOWN = ['Cache-Status', 'Age', 'Feed-Updated', 'Feed-Updated-At', 'Cache-Control', 'ETag', 'Retry-After'];
  const byId = (id) => document.getElementById(id);
  const feed = byId('feed');

  /** An actor may hold anything: in an attribute it is escaped, in an address encoded. */
  const escaped = (text) => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);

  function fillLines() {
    const which = feed.feed ? 'feed' : 'actor';
    const name = feed[which];
    const values = {
      base: document.querySelector('main').dataset.base || location.origin,
      which,
      name: escaped(name),
      account: escaped(feed.feed ? name.split('/')[2] : name),
      path: (feed.feed ? 'feed?feed=' : '') + encodeURIComponent(name),
    };
    for (const code of document.querySelectorAll('code[data-template]')) {
      code.textContent = code.dataset.template.replace(/\{(\w+)\}/g, (_, value) => values[value]);
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
      // What is wrong, where something is.
      if (!response.ok) said.unshift(['Message', (await response.json()).message]);
      if (url !== feed.address()) return;
      byId('headers').replaceChildren(row('Status', String(response.status)), ...said.map(([name, value]) => row(name, value)));
    } catch {
      byId('headers').replaceChildren(row('Status', 'no answer'));
    }
  }

  /** Show what somebody has typed or pasted: an account, a feed, or an address of either. */
  function show(given) {
    const typed = given.trim();
    feed.setAttribute('feed', typed);
    if (!/\/app\.bsky\.(feed\.generator|graph\.list)\//.test(feed.feed)) feed.removeAttribute('feed');
    feed.setAttribute('actor', typed);
    byId('actor').value = feed.feed || feed.actor;
    fillLines();
    showHeaders();
    return byId('actor').value;
  }

  byId('form').addEventListener('submit', (event) => {
    event.preventDefault();
    history.replaceState(null, '', `?actor=${encodeURIComponent(show(byId('actor').value))}`);
  });

  const buttons = [...document.querySelectorAll('button[data-copies]')];

  /** Say what has become of a line: beside it, and to those who hear the page. */
  function say(button, word, sentence) {
    for (const other of buttons) other.textContent = other === button ? word : 'Copy';
    byId('copied').textContent = sentence;
  }

  for (const button of buttons) {
    button.addEventListener('click', async () => {
      const code = byId(button.dataset.copies);
      try {
        await navigator.clipboard.writeText(code.textContent);
        say(button, 'Copied', 'Copied.');
      } catch {
        getSelection().selectAllChildren(code); // no access to the clipboard: one key away
        say(button, 'Selected', 'Selected: press Ctrl+C or ⌘C.');
      }
    });
  }

  show(new URLSearchParams(location.search).get('actor') || byId('actor').value);
})();
