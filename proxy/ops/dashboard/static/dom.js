// What the page is made with. All text goes through `inert`, and none of it is ever taken for markup.

// What is shown of controls, escapes and changes of direction; joiners are part of emoji.
export const inert = (text) => String(text ?? '').replace(/(?!\u200d)[\p{C}\p{Zl}\p{Zp}]/gu, '\ufffd')

export const $ = (selector, root = document) => root.querySelector(selector)

export function put(node, text) {
  if (node.textContent !== text) node.textContent = text
}

// An element with attributes (false: without) and children; texts are inert.
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name)
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(key, value)
    else if (value !== false && value != null) node.setAttribute(key, value === true ? '' : value)
  }
  node.append(...children.filter((child) => child != null).map((child) => (child instanceof Node ? child : inert(child))))
  return node
}

// Tenants' words, whose direction ends with them.
export const words = (text, className) => el('bdi', { class: className }, text)

// Have `list` show `items`: rows stay where they are, and so does the focus, unless what they show has changed.
export function fill(list, items, key, row, empty) {
  const before = new Map([...list.children].map((node) => [node.dataset.key, node]))
  const wanted = items.map((item) => {
    const name = key(item)
    const shown = JSON.stringify(item)
    const old = before.get(name)
    if (old?.dataset.shown === shown) return old
    const node = row(item)
    node.dataset.key = name
    node.dataset.shown = shown
    return node
  })
  if (!wanted.length && empty) wanted.push(list.firstElementChild?.dataset.key === '' ? list.firstElementChild : nothing(empty))
  const active = list.contains(document.activeElement) ? document.activeElement : null
  const place = active && [...list.children].findIndex((node) => node.contains(active))
  const label = active?.dataset.act
  wanted.forEach((node, at) => {
    if (list.children[at] !== node) list.insertBefore(node, list.children[at] ?? null)
  })
  while (list.children.length > wanted.length) list.lastElementChild.remove()
  if (active && !active.isConnected) refocus(list, place, label)
}

function nothing(text) {
  const node = el('li', { class: 'empty' }, text)
  node.dataset.key = ''
  return node
}

// Whoever goes by the keyboard goes on where the row was.
function refocus(list, place, label) {
  const near = list.children[Math.min(place, list.children.length - 1)]
  const again = label && near?.querySelector(`[data-act="${CSS.escape(label)}"]`)
  const next = again || near?.querySelector('button, summary') || list.closest('section')?.querySelector('h2')
  next?.focus()
}

const UNITS = [[60, 1, 's'], [3600, 60, 'min'], [86400, 3600, 'h'], [Infinity, 86400, 'd']]

export function span(seconds) {
  const size = Math.max(0, seconds)
  const [, unit, name] = UNITS.find(([limit]) => size < limit)
  return `${Math.round(size / unit)} ${name}`
}

const distance = (at, now) => (at > now ? `in ${span(at - now)}` : now - at < 1 ? 'now' : `${span(now - at)} ago`)

// An instant, in seconds or as text; `age` keeps it current.
export function when(instant) {
  const date = new Date(typeof instant === 'number' ? instant * 1000 : instant)
  return el('time', { datetime: date.toISOString(), title: date.toLocaleString() }, '')
}

export function age(root, now) {
  for (const node of root.querySelectorAll('time')) put(node, distance(Date.parse(node.dateTime) / 1000, now))
}

export const number = (value) => value.toLocaleString('en', { maximumFractionDigits: value >= 100 ? 0 : value >= 10 ? 1 : 2 })

export const percent = (ratio) => (ratio == null ? '–' : `${ratio >= 0.9995 || ratio === 0 ? Math.round(ratio * 100) : (ratio * 100).toFixed(1)} %`)

export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`
