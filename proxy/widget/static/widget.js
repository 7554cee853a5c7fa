/* Bluesky feeds for any page, served by feedproxy. Its README says how to use them. */
(() => {
  'use strict';

  // What the network sends is foreign: it becomes text nodes and checked attributes, never markup.
  // The pages under /embed show the same markup: what changes here changes there (view.py, parts.html).
  const FORMAT = '1'; // of the markup; a page rendered with another is repainted, not taken over
  const { src } = document.currentScript || {};
  const HOME = src ? new URL(src).origin : '';
  const WEB = 'https://bsky.app';
  const PAUSE_MS = 10000; // between two requests for the same answer
  const REFRESH_MS = 300000;
  const TICK_MS = 15000;
  const TIMEOUT_MS = 20000;
  const DAY_MS = 86400000;
  const OLD_MS = 3600000; // beyond it an answer is marked as stale, whatever the reason
  const STORE = 'bluesky-widget 1 ';
  const STORED_COPIES = 8;
  const STORED_CHARS = 150000;

  // JSON, for pages that are rendered before this runs.
  const WORDS = {
    "en": {"updated": "updated {}", "posts": "Posts by {}", "feed": "Posts", "pinned": "Pinned", "repost": "Reposted by {}", "replyTo": "Reply to {}", "reply": "Reply", "adult": "Adult content – show", "warn": "Sensitive content – show", "members": "Only for readers who are signed in to Bluesky.", "gone": "This post is not available.", "resting": "Nothing to show here at the moment.", "view": "View on Bluesky", "picture": "Picture", "video": "Video", "followers": "Followers", "following": "Following"},
    "de": {"updated": "aktualisiert {}", "posts": "Beiträge von {}", "feed": "Beiträge", "pinned": "Angeheftet", "repost": "Geteilt von {}", "replyTo": "Antwort an {}", "reply": "Antwort", "adult": "Nur für Erwachsene – zeigen", "warn": "Heikler Inhalt – zeigen", "members": "Nur für Angemeldete auf Bluesky.", "gone": "Dieser Beitrag ist nicht verfügbar.", "resting": "Hier gibt es gerade nichts zu sehen.", "view": "Auf Bluesky ansehen", "picture": "Bild", "video": "Video", "followers": "Follower", "following": "Folgt"},
    "es": {"updated": "actualizado {}", "posts": "Publicaciones de {}", "feed": "Publicaciones", "pinned": "Fijado", "repost": "Compartido por {}", "replyTo": "Respuesta a {}", "reply": "Respuesta", "adult": "Contenido para adultos: mostrar", "warn": "Contenido sensible: mostrar", "members": "Solo para quien ha iniciado sesión en Bluesky.", "gone": "Esta publicación no está disponible.", "resting": "Por ahora no hay nada que mostrar.", "view": "Ver en Bluesky", "picture": "Imagen", "video": "Vídeo", "followers": "Seguidores", "following": "Siguiendo"},
    "fr": {"updated": "mis à jour {}", "posts": "Publications de {}", "feed": "Publications", "pinned": "Épinglé", "repost": "Republié par {}", "replyTo": "Réponse à {}", "reply": "Réponse", "adult": "Contenu pour adultes – afficher", "warn": "Contenu sensible – afficher", "members": "Réservé aux personnes connectées à Bluesky.", "gone": "Cette publication n’est pas disponible.", "resting": "Rien à afficher pour le moment.", "view": "Voir sur Bluesky", "picture": "Image", "video": "Vidéo", "followers": "Abonnés", "following": "Abonnements"}
  };

  const STYLE = `
:host { display: block; color-scheme: light dark; max-inline-size: var(--bluesky-width, 37.5rem);
  --text: var(--bluesky-text, light-dark(#0f1720, #eaf0f6)); --muted: var(--bluesky-muted, light-dark(#536271, #9aabba));
  --accent: var(--bluesky-accent, light-dark(#0a5ec4, #74b7ff)); --back: var(--bluesky-background, light-dark(#fff, #131a22));
  --line: var(--bluesky-border, light-dark(#e1e7ec, #2a3540)); --soft: var(--bluesky-soft, light-dark(#f2f5f8, #1d2731));
  --round: var(--bluesky-radius, .75rem); }
:host([hidden]) { display: none; }
:host([theme=light]) { color-scheme: light; }
:host([theme=dark]) { color-scheme: dark; }
* { box-sizing: border-box; margin: 0; }
.feed { font: var(--bluesky-font, 400 .9375rem/1.45 system-ui, sans-serif); color: var(--text); background: var(--back);
  border: 1px solid var(--line); border-radius: var(--round); overflow: auto; max-block-size: 100%; text-align: start; overflow-wrap: anywhere; }
a { color: var(--accent); text-decoration: none; unicode-bidi: isolate; }
a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; border-radius: .25rem; }
.post:focus-visible, .pics a:focus-visible, .reply a:focus-visible { outline-offset: -2px; }
img { display: block; max-inline-size: 100%; background: var(--soft); color: var(--muted); font-size: .8125rem; }
.head, .foot, .post { padding: .875rem 1rem; }
.head { display: flex; align-items: center; gap: .75rem; }
.post { border-block-start: 1px solid var(--line); display: grid; grid-template-columns: 2.5rem minmax(0, 1fr); column-gap: .75rem; overflow: clip; }
.posts > .post:first-child { border-block-start-width: 0; }
.head + .posts > .post:first-child { border-block-start-width: 1px; }
.face { display: block; inline-size: 2.5rem; block-size: 2.5rem; border-radius: 50%; overflow: hidden; background: var(--soft); flex: none; }
.avatar { inline-size: 100%; block-size: 100%; object-fit: cover; }
.who { color: inherit; min-inline-size: 0; display: flex; flex-wrap: wrap; column-gap: .375rem; }
.name, .handle { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; max-inline-size: 100%; }
.name { font-weight: 650; }
.handle, .note, .reply, .when, .foot, .host, .about { color: var(--muted); }
.head .who, .profile .who { flex-direction: column; align-items: start; }
.note span, .reply, .updated, .gone, .resting, summary { unicode-bidi: plaintext; text-align: start; }
.main { min-inline-size: 0; }
.by { display: flex; justify-content: space-between; align-items: baseline; gap: .75rem; }
.post .by .who { flex-wrap: nowrap; }
.post .by .name { flex: none; max-inline-size: 70%; }
.when { flex: none; white-space: nowrap; font-size: .8125rem; }
.note, .reply { font-size: .8125rem; }
.note { grid-column: 2; display: flex; align-items: center; gap: .375rem; font-weight: 550; margin-block-end: .25rem; min-inline-size: 0; }
.note::before { content: ""; inline-size: 12px; block-size: 12px; flex: none; background: currentColor;
  clip-path: path("M3 1 6 4H4V8H7V10H2V4H0zM9 11 6 8H8V4H5V2H10V8H12z"); }
.pinned::before { clip-path: path("M3 0h6v1L8 2v3l2 2v1H7l-1 4-1-4H2V7l2-2V2L3 1z"); }
.text { white-space: pre-wrap; margin-block-start: .125rem; }
.cover > .text { margin-block-start: .5rem; }
.pics, .card, .quote, .video, .cover { margin-block-start: .625rem; }
.pics { display: grid; gap: .25rem; border-radius: var(--round); overflow: hidden; }
.pics a { display: block; min-inline-size: 0; }
.pics img, .poster { inline-size: 100%; block-size: auto; object-fit: cover; min-block-size: 4rem; max-block-size: 30rem; }
.pics:not(.one) img { block-size: 100%; aspect-ratio: 1; }
.one img:not([width]), .poster:not([width]) { aspect-ratio: 16 / 9; }
.one [width], .poster[width] { aspect-ratio: attr(width type(<number>)) / attr(height type(<number>)); }
.one [style*=ratio], .poster[style*=ratio] { aspect-ratio: var(--ratio); }
.two, .many { grid-template-columns: 1fr 1fr; }
.three { grid-template-columns: 2fr 1fr; }
.three a:first-child { grid-row: span 2; }
.lots { display: flex; flex-wrap: wrap; }
.lots a { flex: 1 1 30%; }
.pics.lots img { block-size: 9rem; aspect-ratio: auto; }
.card, .quote { display: block; border: 1px solid var(--line); border-radius: var(--round); overflow: hidden; color: inherit; }
.card:hover { text-decoration: none; background: var(--soft); }
.thumb { inline-size: 100%; aspect-ratio: 1.91; object-fit: cover; border-block-end: 1px solid var(--line); }
.said { display: block; padding: .625rem .75rem; }
.host, .title, .about, .note span, .reply { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
.host { font-size: .8125rem; -webkit-line-clamp: 1; }
.title { font-weight: 600; line-height: 1.3; }
.about { font-size: .875rem; }
.quote { padding: .625rem .75rem; }
.quote .face { inline-size: 1.25rem; block-size: 1.25rem; }
.quote .by { justify-content: start; align-items: center; gap: .5rem; }
.quote .when { margin-inline-start: auto; }
.gone { color: var(--muted); background: var(--soft); }
.video { display: block; position: relative; border-radius: var(--round); overflow: hidden; background: #000; }
.poster { display: block; }
::before, .play { forced-color-adjust: none; }
.play { position: absolute; inset: 0; margin: auto; inline-size: 3.5rem; block-size: 3.5rem; border-radius: 50%; background: #000b; }
.play::after { content: ""; position: absolute; inset: 30% 26% 30% 36%; background: #fff; clip-path: polygon(0 0, 100% 50%, 0 100%); }
summary { cursor: pointer; padding: .5rem .75rem; border-radius: var(--round); background: var(--soft); color: var(--muted); font-size: .875rem; }
.foot { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .25rem 1rem; font-size: .8125rem; border-block-start: 1px solid var(--line); }
.feed[data-stale] .updated::before { content: ""; display: inline-block; inline-size: .5rem; block-size: .5rem; border-radius: 50%;
  margin-inline-end: .375rem; background: light-dark(#b26a00, #f0b429); }
.resting { padding: 1.5rem 1rem; text-align: center; color: var(--muted); }
.resting + .foot { justify-content: center; border: 0; padding-block-start: 0; }
.banner { inline-size: 100%; aspect-ratio: 3; object-fit: cover; }
.profile { padding: 1rem; }
.profile .who { margin-block: .25rem .5rem; }
.profile .face { inline-size: 4.5rem; block-size: 4.5rem; }
.banner + .profile .face { margin-block-start: -3.25rem; border: 3px solid var(--back); }
.counts { display: flex; flex-wrap: wrap; gap: .25rem 1rem; color: var(--muted); margin-block-start: .625rem; font-size: .875rem; }
.counts b { color: var(--text); }
.bone { block-size: 8.5rem; border-block-start: 1px solid var(--line); animation: pulse 1.6s ease-in-out infinite alternate; background:
  linear-gradient(var(--soft) 0 0) 4.25rem 1rem / 40% 1rem no-repeat, linear-gradient(var(--soft) 0 0) 4.25rem 3rem / 70% 3rem no-repeat,
  radial-gradient(1.25rem, var(--soft) 98%, #0000) 1rem 1rem / 2.5rem 2.5rem no-repeat; }
@keyframes pulse { to { opacity: .5; } }
@media (prefers-reduced-motion: reduce) { .bone { animation: none; } }
@media print { :host { color-scheme: light !important; block-size: auto !important; } .feed { max-block-size: none; overflow: visible; } .post { break-inside: avoid; } }
`;

  // --- What is foreign, made harmless -------------------------------------------------------------------

  const encoder = new TextEncoder();
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  // Invisible characters and those that turn the direction of text: no address contains them, no name is made of them.
  const BLANK = '\\0- \\x7f-\\xa0\\u2000-\\u200f\\u2028-\\u202f\\u205f-\\u206f\\u3000\\ufeff\\ud800-\\udfff';
  const VISIBLE = new RegExp(`[^${BLANK}\\xad\\u034f\\u061c\\u115f\\u1160\\u180e\\u2800\\u3164\\uffa0]`, 'u');
  const UNSEEN = new RegExp(`[${BLANK}]+`, 'gu');
  const HTTP = new RegExp(`^[Hh][Tt][Tt][Pp][Ss]?://([^${BLANK}/?#@:\\\\<>"]+)(:[0-9]{1,5})?([/?#][^${BLANK}\\\\<>"]*)?$`, 'u');
  const DID = /^did:[a-z]+:[A-Za-z0-9._:%-]{1,500}$/;
  const HANDLE = /^[A-Za-z0-9.-]{1,253}$/;
  const RECORD = /^at:\/\/(did:[a-z]+:[A-Za-z0-9._:%-]{1,500})\/([A-Za-z.]{1,100})\/([A-Za-z0-9._:~-]{1,512})$/;
  const PLACES = { 'app.bsky.feed.post': 'post', 'app.bsky.feed.generator': 'feed', 'app.bsky.graph.list': 'lists' };
  const INSTANT = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)$/;
  const LANGUAGE = /^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$/;

  const list = (value, most = 100) => (Array.isArray(value) ? value.slice(0, most) : []);
  const shown = (text) => text.replace(/[\0-\x08\x0b-\x1f\x7f]/g, '');
  const http = (value) => (typeof value === 'string' && value.length <= 2048 && HTTP.test(value) ? value : '');
  const matching = (pattern, value) => (typeof value === 'string' && pattern.test(value) ? value : '');

  /** The UTF-8 bytes of `value`, at most `most` of them; none of what is not text. */
  function bytesOf(value, most) {
    const bytes = encoder.encode(typeof value === 'string' ? value : '');
    if (bytes.length <= most) return bytes;
    let end = most;
    while ((bytes[end] & 0xc0) === 0x80) end -= 1;
    return encoder.encode(`${decoder.decode(bytes.subarray(0, end))}…`);
  }

  const text = (value, most) => shown(decoder.decode(bytesOf(value, most)));

  /** Account, kind and key of what people copy: names, at:// addresses and those of the web. */
  const namesIn = (value) =>
    text(value, 2048)
      .replace(UNSEEN, '')
      .replace(/^(https?:\/\/)?(www\.)?bsky\.app\/profile\/|^at:\/\/|^@/i, '')
      .replace(/%3a/gi, ':')
      .split(/[/?#]/);

  /** The at:// address of a record; '' for what names none. */
  function recordIn(value) {
    const [account, kind, key] = namesIn(value);
    return key ? `at://${account}/${Object.keys(PLACES).find((name) => PLACES[name] === kind) || kind}/${key}` : '';
  }

  /** Where a record is shown on the web; '' for what is not shown there. */
  function webAddress(uri) {
    const [, did, kind, key] = RECORD.exec(typeof uri === 'string' ? uri : '') || [];
    if (kind === 'app.bsky.graph.starterpack') return `${WEB}/starter-pack/${did}/${key}`;
    if (kind === 'app.bsky.labeler.service') return `${WEB}/profile/${did}`;
    const place = PLACES[kind];
    return place ? `${WEB}/profile/${did}/${place}/${key}` : '';
  }

  /** The earlier of two dates, without what precedes the epoch; null if neither is one. */
  function earliest(...dates) {
    const instants = dates.filter((date) => matching(INSTANT, date)).map(Date.parse);
    const known = instants.filter((instant) => instant >= 0);
    return known.length ? Math.min(...known) : null;
  }

  /** The values of all labels on `things`. */
  function labelsOf(...things) {
    const labels = things.map((thing) => thing?.labels).flatMap((labels) => list(Array.isArray(labels) ? labels : labels?.values));
    return new Set(labels.filter((label) => label?.neg !== true).map((label) => label?.val));
  }

  const HIDDEN = ['!hide', '!takedown', '!no-unauthenticated'];
  const ADULT = ['porn', 'sexual', 'nudity', 'graphic-media', 'gore', 'nsfl'];
  const hidden = (labels) => HIDDEN.some((value) => labels.has(value));
  const coverOf = (labels) => (ADULT.some((value) => labels.has(value)) ? 'adult' : labels.has('!warn') ? 'warn' : '');

  /** What follows the # of a $type. */
  const kindOf = (thing) => (typeof thing?.$type === 'string' ? thing.$type.split('#')[1] : '');

  function accountOf(view) {
    const did = matching(DID, view?.did);
    if (!did) throw new TypeError('an account without a DID');
    const labels = labelsOf(view);
    const handle = matching(HANDLE, view.handle);
    const name = text(view.displayName, 640);
    return {
      did,
      handle,
      labels,
      hidden: hidden(labels),
      name: VISIBLE.test(name) ? name : handle || did,
      avatar: coverOf(labels) ? '' : http(view.avatar),
      href: `${WEB}/profile/${did}`,
    };
  }

  function linkOf(facet) {
    for (const feature of list(facet?.features)) {
      const kind = kindOf(feature);
      if (kind === 'link' && http(feature.uri)) return feature.uri;
      if (kind === 'mention' && matching(DID, feature.did)) return `${WEB}/profile/${feature.did}`;
      if (kind === 'tag' && text(feature.tag, 640)) return `${WEB}/hashtag/${encodeURIComponent(text(feature.tag, 640))}`;
    }
    return '';
  }

  /** Text cut at its facets: pairs of a piece and the address it links to, or ''. Facets count bytes. */
  function segments(record) {
    const bytes = bytesOf(record?.text, 3000);
    const whole = (at) => Number.isInteger(at) && at >= 0 && at <= bytes.length && (bytes[at] & 0xc0) !== 0x80;
    const facets = list(record?.facets)
      .map((facet) => ({ start: facet?.index?.byteStart, end: facet?.index?.byteEnd, href: linkOf(facet) }))
      .filter(({ start, end, href }) => href && whole(start) && whole(end) && start < end)
      .sort((one, other) => one.start - other.start);
    const pieces = [];
    let at = 0;
    const cut = (end, href) => {
      const piece = shown(decoder.decode(bytes.subarray(at, end))).replace(/\n{3,}/g, '\n\n');
      if (piece) pieces.push([piece, href]);
      at = end;
    };
    for (const { start, end, href } of facets) {
      if (start < at) continue; // it overlaps the one before
      cut(start, '');
      cut(end, href);
    }
    cut(bytes.length, '');
    return pieces;
  }

  // --- From answers to elements ---------------------------------------------------------------------------

  /** An element whose class is also its part. Children are nodes, text, or objects of attributes. */
  function make(tag, name, ...children) {
    const element = document.createElement(tag);
    if (name) {
      element.className = name;
      element.setAttribute('part', name);
    }
    for (const child of children.flat()) {
      if (child === null || child === '') continue;
      if (typeof child === 'string' || child instanceof Node) element.append(child);
      else for (const [key, value] of Object.entries(child)) element.setAttribute(key, value);
    }
    return element;
  }

  const link = (name, href, ...children) =>
    make('a', name, { href, target: '_blank', rel: 'noopener nofollow', referrerpolicy: 'no-referrer' }, ...children);

  function picture(name, src, alt, ratio) {
    const side = (value) => (Number.isInteger(value) && value > 0 && value <= 100000 ? value : 0);
    const [width, height] = [side(ratio?.width), side(ratio?.height)];
    const known = width && height;
    return keepRatio(make('img', name, { src, alt, ...(known ? { width, height } : {}), loading: 'lazy', decoding: 'async', referrerpolicy: 'no-referrer' }));
  }

  /** Whatever comes, the picture stays as wide and high as it was said to be: also where CSS cannot read attributes. */
  function keepRatio(image) {
    const side = (name) => image.getAttribute(name);
    if (side('width')) image.style.setProperty('--ratio', `${side('width')} / ${side('height')}`);
    return image;
  }

  /** The words of `sentence` with `node` in the place of {}. */
  function filled(sentence, node) {
    const [before, after] = sentence.split('{}');
    return [before, node, after];
  }

  const isoDate = (instant) => new Date(instant).toISOString().slice(0, 19) + 'Z';
  const face = (account) => make('span', 'face', account.avatar ? picture('avatar', account.avatar, '') : null);
  const who = (account) =>
    link('who', account.href, make('bdi', 'name', account.name), account.handle ? make('bdi', 'handle', `@${account.handle}`) : null);

  /** Answers turned into elements, in the words of one language. */
  class Renderer {
    constructor({ words, language }) {
      this.words = words;
      this.numbers = formatter('NumberFormat', language, { notation: 'compact' });
    }

    /** The posts of a feed as articles. One that cannot be read is left out, and harms no other. */
    articles(items, limit) {
      const seen = new Set();
      const articles = [];
      for (const item of items) {
        if (articles.length >= limit) break;
        try {
          const reposter = item?.reason?.by?.did;
          const key = `${item?.post?.uri} ${typeof reposter === 'string' ? reposter : ''}`;
          const article = seen.has(key) ? null : this.article(item);
          seen.add(key);
          if (article) articles.push(article);
        } catch {
          // It is not there, then.
        }
      }
      articles.forEach((article, index) => {
        article.setAttribute('aria-posinset', index + 1);
        article.setAttribute('aria-setsize', articles.length);
      });
      return articles;
    }

    article({ post, reason, reply }) {
      const account = accountOf(post.author);
      const labels = labelsOf(post, post.record, post.author);
      const href = webAddress(post.uri);
      if (!href || hidden(labels)) return null;
      const note = this.note(reason);
      if (note === undefined) return null;
      return make('article', 'post', { tabindex: '0', 'aria-label': account.name },
        note,
        face(account),
        make('div', 'main',
          make('div', 'by', who(account), this.when(href, earliest(post.record?.createdAt, post.indexedAt))),
          this.reply(post, reply),
          this.covered(coverOf(labels), [this.text(post.record), this.attached(post, href)])));
    }

    /** What stands above a post; undefined if it must not be named. */
    note(reason) {
      const kind = kindOf(reason);
      if (kind === 'reasonPin') return make('p', 'note pinned', this.words.pinned);
      if (kind !== 'reasonRepost') return null;
      const reposter = accountOf(reason.by);
      if (reposter.hidden) return undefined;
      return make('p', 'note', make('span', '', filled(this.words.repost, make('bdi', '', reposter.name))));
    }

    reply(post, reply) {
      if (!post.record?.reply) return null;
      const parent = reply?.parent;
      const href = webAddress(parent?.uri);
      const account = matching(DID, parent?.author?.did) && accountOf(parent.author);
      // To whom is not always known, or to be told.
      const named = href && account && !account.hidden;
      return make('p', 'reply', ...(named ? [link('', href, filled(this.words.replyTo, make('bdi', '', account.name)))] : [this.words.reply]));
    }

    when(href, instant) {
      const label = instant === null ? this.words.view : make('time', '', { datetime: isoDate(instant) }, isoDate(instant).slice(0, 10));
      return link('when', href, label);
    }

    text(record) {
      const pieces = segments(record).map(([piece, href]) => (href ? link('link', href, piece) : piece));
      const language = matching(LANGUAGE, list(record?.langs)[0]);
      return pieces.length ? make('p', 'text', { dir: 'auto', ...(language ? { lang: language } : {}) }, ...pieces) : null;
    }

    covered(cover, content) {
      if (!content.flat().some(Boolean)) return null;
      return cover ? make('details', 'cover', make('summary', '', this.words[cover]), ...content) : make('div', 'body', ...content);
    }

    /** What is attached to a post; where that is of a kind yet unknown, a way to see it. */
    attached(post, href) {
      const elements = this.embed(post.embed, href, 0).filter(Boolean);
      const missed = !elements.length && (post.embed || post.record?.embed);
      return missed ? [link('card', href, make('span', 'said', make('bdi', 'title', this.words.view)))] : elements;
    }

    /** The elements of an embed; `depth` counts quotes in quotes. */
    embed(embed, href, depth) {
      try {
        switch (typeof embed?.$type === 'string' ? embed.$type : '') {
          case 'app.bsky.embed.images#view':
            return [this.pictures(list(embed.images, 20))];
          case 'app.bsky.embed.gallery#view':
            return [this.pictures(list(embed.items, 20))];
          case 'app.bsky.embed.external#view':
            return [this.card(embed.external)];
          case 'app.bsky.embed.video#view':
            return [this.video(embed, href)];
          case 'app.bsky.embed.record#view':
            return depth ? [] : [this.quote(embed.record)];
          case 'app.bsky.embed.recordWithMedia#view':
            return [...this.embed(embed.media, href, depth), depth ? null : this.quote(embed.record?.record)];
        }
      } catch {
        // A broken attachment does not cost the text.
      }
      return [];
    }

    pictures(images) {
      const links = images.flatMap((image) => {
        const src = http(image?.thumb) || http(image?.thumbnail);
        const full = http(image?.fullsize) || src;
        return src ? [link('', full, picture('picture', src, text(image.alt, 2000) || this.words.picture, image.aspectRatio))] : [];
      });
      const count = ['', 'one', 'two', 'three', 'many'][links.length] ?? 'lots';
      return links.length ? make('div', `pics ${count}`, ...links) : null;
    }

    card(external) {
      const href = http(external?.uri);
      return href ? this.teaser(href, HTTP.exec(href)[1].toLowerCase(), external.title, external.description, http(external.thumb)) : null;
    }

    teaser(href, host, title, about, thumb) {
      return link('card', href,
        thumb ? picture('thumb', thumb, '') : null,
        make('span', 'said',
          make('bdi', 'host', host),
          make('bdi', 'title', text(title, 1000) || href),
          text(about, 1000) ? make('bdi', 'about', text(about, 1000)) : null));
    }

    video(embed, href) {
      const poster = http(embed.thumbnail);
      const alt = text(embed.alt, 2000);
      return link('video', href, { 'aria-label': alt ? `${this.words.video}: ${alt}` : this.words.video },
        poster ? picture('poster', poster, '', embed.aspectRatio) : make('span', 'poster'),
        make('span', 'play', { 'aria-hidden': 'true' }));
    }

    quote(record) {
      if (record?.$type !== 'app.bsky.embed.record#viewRecord') return this.mentioned(record);
      const labels = labelsOf(record, record.value, record.author);
      const account = accountOf(record.author);
      const href = webAddress(record.uri);
      if (!href || hidden(labels)) return make('p', 'quote gone', this.words[account.hidden ? 'members' : 'gone']);
      return make('blockquote', 'quote',
        make('div', 'by', face(account), who(account), this.when(href, earliest(record.value?.createdAt, record.indexedAt))),
        this.covered(coverOf(labels), [this.text(record.value), this.embed(list(record.embeds)[0], href, 1)]));
    }

    /** A feed, a list, a starter pack, a labeler; or a post that is no more. */
    mentioned(record) {
      const href = webAddress(record?.uri);
      const title = record?.displayName ?? record?.name ?? record?.record?.name ?? record?.creator?.displayName ?? record?.creator?.handle;
      if (!href || typeof title !== 'string') return make('p', 'quote gone', this.words.gone);
      return this.teaser(href, 'bsky.app', title, record.description ?? record.record?.description, '');
    }

    head(account) {
      return make('header', 'head', face(account), who(account));
    }

    foot(href, updatedAt) {
      const time = updatedAt === null ? null : make('time', '', { datetime: isoDate(updatedAt) }, isoDate(updatedAt).slice(0, 16).replace('T', ' ') + ' UTC');
      return make('footer', 'foot',
        time && make('span', 'updated', filled(this.words.updated, time)),
        link('more', href, this.words.view));
    }

    resting(why) {
      return make('p', 'resting', this.words[why]);
    }
  }

  // --- What the browser keeps, and what it asks for -------------------------------------------------------

  const asked = new Map(); // address -> when, and the answer that everyone shares who asks within PAUSE_MS

  /** The question for more posts, of which the answer to `url` is the beginning. */
  const longer = (url) => url.replace('limit=30', 'limit=100');

  /** The answer from an address, or from the longer one where somebody on this page asks that. */
  function ask(url) {
    const more = longer(url);
    const wanted = [...widgets].some((widget) => widget._url === more) ? more : url;
    const now = performance.now();
    asked.forEach(({ at }, one) => now - at >= PAUSE_MS && asked.delete(one));
    if (!asked.has(wanted)) asked.set(wanted, { at: now, answer: load(wanted) });
    return asked.get(wanted).answer;
  }

  let aheadMs = 0; // how far the clock of the reader runs ahead of that of the proxy

  async function load(url) {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    const response = await fetch(url, { credentials: 'omit', referrerPolicy: 'no-referrer', signal });
    const body = await response.json();
    if (!response.ok) throw Object.assign(new Error(body?.error), { gone: /^(Account\w+|NotFound)$/.test(body?.error) });
    const said = (name) => response.headers.get(name) ?? '';
    const updatedAt = earliest(said('feed-updated-at')) ?? Date.now();
    // Answers may have lain in caches between us for a while: what is less than a day is no reason to doubt.
    const ahead = Date.now() - updatedAt - 1000 * said('age');
    aheadMs = ahead > DAY_MS ? ahead : 0;
    const answer = {
      body,
      updatedAt,
      aheadMs,
      key: /^(?:W\/)?"([^"-]+)/.exec(said('etag'))?.[1] ?? String(Date.now()),
      failing: said('cache-status').includes('stale-if-error'),
    };
    keep(url, answer);
    return answer;
  }

  /** What `use` makes of the browser's storage; undefined where there is none, no room in it, or nothing of ours. */
  function stored(use) {
    try {
      return use(localStorage);
    } catch {
      // The page goes without.
    }
  }

  /** Remember a good answer, or as much of it as there is room for; the oldest ones make room. */
  const keep = (url, { body, ...more }) =>
    stored((storage) => {
      const copy = { at: Date.now(), ...more, body: { ...body, feed: body.feed && list(body.feed) } };
      const { feed } = copy.body;
      while (feed?.length > 1 && JSON.stringify(copy).length > STORED_CHARS) {
        feed.length >>= 1;
        copy.key = `${more.key} in part`;
      }
      const written = JSON.stringify(copy);
      if (written.length > STORED_CHARS) return;
      storage.setItem(STORE + url, written);
      const bornAt = (name) => stored(() => JSON.parse(storage[name]).at) || 0;
      const copies = Object.keys(storage).filter((name) => name.startsWith(STORE));
      copies.sort((one, other) => bornAt(other) - bornAt(one));
      for (const name of copies.slice(STORED_COPIES)) storage.removeItem(name);
    });

  const kept = (url) =>
    stored((storage) => {
      const copy = JSON.parse(storage[STORE + url]);
      if (!copy.body || !(copy.updatedAt > 0)) return null;
      aheadMs ||= copy.aheadMs || 0;
      return copy;
    });

  // --- The elements -----------------------------------------------------------------------------------------

  const widgets = new Set();
  const sheets = new WeakMap(); // each document has its own

  class Widget extends HTMLElement {
    static observedAttributes = ['actor', 'feed', 'uri', 'limit', 'filter', 'proxy', 'lang'];

    _root = null;
    _url = '';
    _key = null; // of the answer that is shown, null if none is
    _failing = false; // what is shown could not be confirmed
    _failures = 0;
    _dueAt = 0;
    _held = null; // an answer that is not shown while somebody is at the one before

    connectedCallback() {
      widgets.add(this);
      if (this._url === this.address()) this.tick(true); // it was only moved
      else this._begin();
    }

    disconnectedCallback() {
      widgets.delete(this);
    }

    adoptedCallback() {
      if (this._root) this._dress();
    }

    _dress() {
      const { defaultView } = this.ownerDocument;
      if (!defaultView) return; // nobody sees it
      if (!sheets.has(defaultView)) {
        const sheet = new defaultView.CSSStyleSheet();
        sheet.replaceSync(STYLE);
        sheets.set(defaultView, sheet);
      }
      this._root.adoptedStyleSheets = [sheets.get(defaultView)];
    }

    /** Begin anew, once for all attributes that change together. */
    attributeChangedCallback(_name, before, now) {
      if (!this._root || before === now) return;
      this._url = '';
      queueMicrotask(() => {
        if (this.isConnected && !this._url) this._begin();
      });
    }

    /** Look after the dates, and ask again when it is time; `soon` when a reader has just come back. */
    tick(soon) {
      if (document.hidden) return;
      if (this._held) this._take(this._held);
      this._date();
      if (performance.now() >= this._dueAt - (soon ? REFRESH_MS - PAUSE_MS : 0)) this._refresh();
    }

    get language() {
      return this.closest('[lang]')?.lang || document.documentElement.lang || navigator.language;
    }

    /** Of the words; the page's own, if there are words for it. */
    get spoken() {
      const language = this.language.slice(0, 2).toLowerCase();
      return WORDS[language] ? language : 'en';
    }

    get words() {
      return WORDS[this.spoken];
    }

    get actor() {
      const [name] = namesIn(this.getAttribute('actor'));
      return name.startsWith('did:') ? name : name.toLowerCase();
    }

    get profile() {
      return this.actor ? `${WEB}/profile/${encodeURIComponent(this.actor)}` : WEB;
    }

    get proxy() {
      return (this.getAttribute('proxy') || HOME).replace(/\/+$/, '');
    }

    question(method, parameters) {
      return `${this.proxy}/xrpc/${method}?${new URLSearchParams(parameters)}`;
    }

    _begin() {
      this._url = this.address();
      this._key = null;
      this._held = null;
      this._failing = false;
      if (!this.proxy) console.warn(this, 'needs proxy="https://…"');
      const first = !this._root;
      this._root = this._root || this._opened();
      const painted = first && this._root.querySelector('.feed');
      if (painted) this._takeOver(painted);
      else if (!this._recall()) this._show(make('section', 'feed', { 'aria-busy': 'true' }, ...Array(this.bones).fill().map(() => make('div', 'bone'))));
      this._refresh();
    }

    /** Paint the copy that the browser has; whether there is one that can be painted. */
    _recall() {
      try {
        this._paint(kept(this._url) || kept(longer(this._url)));
        return true;
      } catch {
        return false;
      }
    }

    /** The shadow root, with what a server has rendered into it. */
    _opened() {
      const root = this.shadowRoot || this.attachShadow({ mode: 'open' });
      const template = this.querySelector(':scope > template[shadowrootmode]');
      if (template && !root.firstChild) root.append(template.content);
      root.addEventListener('keydown', turnPage);
      root.addEventListener('error', hideOrnament, true);
      return root;
    }

    /** Go on with markup that was rendered by a server. */
    _takeOver(painted) {
      if (painted.dataset.format !== FORMAT) return; // it has a style sheet of its own, until the answer comes
      if (painted.lang === this.spoken) this._key = painted.dataset.key ?? null;
      this._dress();
      this._root.replaceChildren(painted); // without its own style sheet
      for (const target of painted.querySelectorAll('img')) {
        keepRatio(target);
        if (target.complete && !target.naturalWidth) hideOrnament({ target });
      }
      this._date();
    }

    async _refresh() {
      const url = this._url;
      this._dueAt = performance.now() + REFRESH_MS;
      if (this.hasAttribute('still')) return; // a page that may not ask
      try {
        await null; // all that are made together know of each other then
        const answer = await ask(url);
        if (url !== this._url) return;
        this._failures = 0;
        this._failing = answer.failing;
        this._take(answer);
      } catch (error) {
        if (url !== this._url) return;
        this._fail(error);
      }
      const detail = { posts: this._root.querySelectorAll('.post').length, stale: this._failing };
      this.dispatchEvent(new CustomEvent('bluesky-update', { bubbles: true, composed: true, detail }));
    }

    _take(answer) {
      const selection = (this._root.getSelection ? this._root : document).getSelection();
      const using = this._root.querySelector(':focus-visible') || selection?.type === 'Range';
      this._held = null;
      if (this._key === answer.key) {
        const time = this._root.querySelector('.updated time');
        if (time) time.dateTime = isoDate(answer.updatedAt);
      } else if (this._key !== null && using) {
        this._held = answer;
      } else {
        this._paint(answer);
      }
      this._date();
    }

    _fail({ gone }) {
      this._dueAt = performance.now() + Math.min(REFRESH_MS, TICK_MS * 2 ** this._failures);
      this._failures += 1;
      this._failing = true;
      if (gone) stored((storage) => storage.removeItem(STORE + this._url));
      // Never an error while there is anything to show.
      if (this._root.querySelector('.posts, .profile') && !gone) this._date();
      else this._rest('resting');
    }

    _rest(why) {
      const renderer = new Renderer(this);
      this._key = null;
      this._show(make('section', 'feed', { lang: this.spoken }, renderer.resting(why), renderer.foot(this.web, null)));
    }

    _paint({ body, updatedAt, key }) {
      const renderer = new Renderer(this);
      const content = this.content(renderer, body);
      const foot = renderer.foot(this.web, updatedAt);
      this._key = key;
      this._show(make('section', 'feed', { lang: this.spoken, 'data-key': key, 'data-format': FORMAT }, ...content, foot));
      this._date();
    }

    /** Show `section`. What is open stays open, and what is being read stays where it is. */
    _show(section) {
      const before = this._root.querySelector('.feed');
      const posts = () => [...this._root.querySelectorAll('.post')];
      const open = posts().filter((post) => post.querySelector('details[open]')).map(addressOf);
      const scrolled = before?.scrollTop || 0;
      const edge = scrolled ? before.getBoundingClientRect().top : 0;
      const read = (scrolled || this.getBoundingClientRect().top < 0) && posts().find((post) => post.getBoundingClientRect().bottom > edge);
      const placeOf = (post) => post.getBoundingClientRect().top;
      const place = read && placeOf(read);
      this._dress();
      this._root.replaceChildren(section);
      for (const post of posts()) {
        if (open.includes(addressOf(post))) post.querySelector('details')?.setAttribute('open', '');
      }
      section.scrollTop = scrolled;
      const same = read && posts().find((post) => addressOf(post) === addressOf(read));
      if (same) (scrolled ? section : window).scrollBy({ top: placeOf(same) - place, behavior: 'instant' });
    }

    /** Write dates relative to now, and mark what is stale. */
    _date() {
      const now = Date.now() - aheadMs;
      for (const time of this._root.querySelectorAll('time')) {
        const instant = Date.parse(time.dateTime);
        const updated = time.parentElement.className === 'updated';
        if (updated) this._root.querySelector('.feed').toggleAttribute('data-stale', this._failing || now - instant > OLD_MS);
        // No sentence is in two languages.
        time.textContent = relative(instant, now, updated ? this.spoken : this.language, updated);
        time.title = formatter('DateTimeFormat', this.language, { dateStyle: 'full', timeStyle: 'short' }).format(instant);
      }
    }
  }

  const addressOf = (post) => post.querySelector('.main > .by > .when')?.href;

  const formatters = new Map();

  /** An Intl[kind] of `language`, or of the reader's where that is none: a lang attribute may say anything. */
  function formatter(kind, language, options) {
    const name = [kind, language, ...Object.values(options)].join();
    if (!formatters.has(name)) {
      let made;
      try {
        made = new Intl[kind](language, options);
      } catch {
        made = new Intl[kind](undefined, options);
      }
      formatters.set(name, made);
    }
    return formatters.get(name);
  }

  const UNITS = [['year', 365], ['month', 30], ['day', 1], ['hour', 1 / 24], ['minute', 1 / 1440]];

  /** "3 minutes ago"; for posts briefly, and after a week the date. */
  function relative(instant, now, language, wordy) {
    const days = Math.max(0, now - instant) / DAY_MS;
    if (!wordy && days >= 7) return formatter('DateTimeFormat', language, { dateStyle: 'medium' }).format(instant);
    const words = formatter('RelativeTimeFormat', language, { style: wordy ? 'long' : 'narrow', numeric: 'auto' });
    const [unit, length] = UNITS.find((pair) => days >= pair[1]) || ['second', Infinity];
    return words.format(-Math.floor(days / length), unit);
  }

  class BlueskyFeed extends Widget {
    get limit() {
      return Math.min(100, Math.max(1, Number.parseInt(this.getAttribute('limit'), 10) || 10));
    }

    get bones() {
      return this.limit;
    }

    get web() {
      return webAddress(this.feed) || this.profile;
    }

    get feed() {
      return recordIn(this.getAttribute('feed'));
    }

    /** Few sizes only, so that widgets and pages of all lengths share an answer. */
    address() {
      const limit = this.limit <= 30 ? 30 : 100;
      const { feed } = this;
      if (feed.includes('/app.bsky.graph.list/')) return this.question('app.bsky.feed.getListFeed', { list: feed, limit });
      if (feed) return this.question('app.bsky.feed.getFeed', { feed, limit });
      const filter = this.getAttribute('filter') || 'posts_and_author_threads';
      return this.question('app.bsky.feed.getAuthorFeed', { actor: this.actor, limit, filter, includePins: true });
    }

    content(renderer, body) {
      const items = list(body?.feed);
      const owner = this.feed ? null : ownerOf(items, this.actor);
      if (owner?.hidden) return [renderer.resting('members')];
      const articles = renderer.articles(items, this.limit);
      const label = owner ? renderer.words.posts.replace('{}', () => owner.name) : renderer.words.feed;
      const posts = make('div', 'posts', { role: 'feed', 'aria-label': label }, ...articles);
      return [owner && renderer.head(owner), articles.length ? posts : renderer.resting('resting')];
    }
  }

  /** The account that `actor` names, as the posts themselves show it. */
  function ownerOf(items, actor) {
    for (const view of items.flatMap((item) => [item?.post?.author, item?.reason?.by])) {
      if (matching(DID, view?.did) && [view.did, matching(HANDLE, view.handle).toLowerCase()].includes(actor)) return accountOf(view);
    }
    return null;
  }

  /** Page Up and Page Down walk through the posts, as is usual in feeds. */
  function turnPage(event) {
    const step = { PageDown: 'nextElementSibling', PageUp: 'previousElementSibling' }[event.key];
    const next = step && event.target.closest('.post')?.[step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  }

  /** A picture that says nothing and does not come is better not there; its place is kept. */
  function hideOrnament({ target }) {
    if (target.alt === '') target.style.visibility = 'hidden';
  }

  class BlueskyProfile extends Widget {
    get bones() {
      return 2;
    }

    get web() {
      return this.profile;
    }

    address() {
      return this.question('app.bsky.actor.getProfile', { actor: this.actor });
    }

    content(renderer, profile) {
      const account = accountOf(profile);
      if (account.hidden) return [renderer.resting('members')];
      const banner = coverOf(account.labels) ? '' : http(profile.banner);
      const about = text(profile.description, 3000);
      const count = (value, word) => (Number.isInteger(value) ? [make('span', '', `${word} `, make('b', '', renderer.numbers.format(value)))] : []);
      return [
        banner ? picture('banner', banner, '') : null,
        make('article', 'profile', { 'aria-label': account.name },
          face(account),
          who(account),
          about ? make('p', 'text', { dir: 'auto' }, about) : null,
          make('p', 'counts',
            ...count(profile.followersCount, renderer.words.followers),
            ...count(profile.followsCount, renderer.words.following),
            ...count(profile.postsCount, renderer.words.feed))),
      ];
    }
  }

  class BlueskyPost extends Widget {
    get bones() {
      return 1;
    }

    get uri() {
      return recordIn(this.getAttribute('uri'));
    }

    get web() {
      return webAddress(this.uri) || http(this.getAttribute('uri')) || WEB;
    }

    address() {
      return this.question('app.bsky.feed.getPostThread', { uri: this.uri, depth: 0, parentHeight: 0 });
    }

    content(renderer, body) {
      const articles = renderer.articles([body?.thread], 1);
      const why = labelsOf(body?.thread?.post?.author).has('!no-unauthenticated') ? 'members' : 'gone';
      return [articles.length ? make('div', 'posts', ...articles) : renderer.resting(why)];
    }
  }

  function start() {
    if (customElements.get('bluesky-feed')) return;
    customElements.define('bluesky-feed', BlueskyFeed);
    customElements.define('bluesky-profile', BlueskyProfile);
    customElements.define('bluesky-post', BlueskyPost);
    const tick = (soon) => widgets.forEach((widget) => widget.tick(soon));
    setInterval(tick, TICK_MS);
    document.addEventListener('visibilitychange', () => tick(true));
    addEventListener('online', () => tick(true));
  }

  // An element that is made before the parser has been through it would lose what a server has put into it.
  if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', start);
  else start();
})();
