// The dashboard: listens while it is looked at, shows what it hears, and asks before what cannot be undone.
import { $, age, count, el, fill, inert, number, percent, put, span, words } from './dom.js'
import { Lists } from './lists.js'
import { Plot } from './plot.js'

const HOUR_S = 3600
const AGAIN_MS = 5000
const STATUS = { pass: ['good', 'All is well'], warn: ['odd', 'Needs a look'], fail: ['bad', 'Failing'] }
const PARTS = { store: 'Redis', upstream: 'The API', storability: 'The API', queue: 'Queue', workers: 'Workers', dead_letters: 'Failed posts', accounts: 'Accounts', secrets: 'Secrets', durability: 'Redis', eviction: 'Redis', store_data: 'Stored data' }
const BREAKER = { closed: 'good', open: 'bad' }
const MIB = 1024 * 1024

const plots = [
  new Plot($('#plot-ratio'), [{ name: '', value: (step) => step.ratio, weigh: (step) => step.reads }], percent0, { top: 1 }),
  new Plot($('#plot-reads'), [{ name: 'all', value: (step) => step.reads }, { name: 'to the API', value: (step) => step.upstream }], number),
  new Plot($('#plot-posts'), [{ name: 'published', value: (step) => step.published * 60 }, { name: 'failed', value: (step) => step.failed * 60 }], number),
]
const lists = new Lists({ ask, sure, say, heard: showPause })
let steps = []
let source = null
let paused = false

function percent0(ratio) {
  return `${Math.round(ratio * 100)} %`
}

async function ask(method, path, document) {
  const body = document && JSON.stringify(document)
  const answer = await fetch(`/ops/api/${path}`, { method, body, headers: body ? { 'content-type': 'application/json' } : {} })
  if (answer.status === 401) leave()
  const told = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Error(told.message ?? `The proxy answered with ${answer.status}.`)
  return told
}

function leave() {
  location.assign('/ops/login')
}

function sure(question, yes) {
  const dialog = $('#ask')
  put($('#ask-text'), inert(question))
  put($('#ask-yes'), yes)
  dialog.returnValue = 'no'
  dialog.showModal()
  return new Promise((done) => dialog.addEventListener('close', () => done(dialog.returnValue === 'yes'), { once: true }))
}

let silence
function say(text, isTrouble = false) {
  const said = $('#said')
  said.className = isTrouble ? 'bad' : ''
  said.textContent = inert(text)
  clearTimeout(silence)
  silence = setTimeout(() => (said.textContent = ''), isTrouble ? 15000 : 6000)
}

function tile(name, value, hint, className = '') {
  const node = $(`#${name}`)
  put(node, value)
  node.className = className
  put($(`#${name}-hint`), hint)
}

function showHead({ version, host, status }) {
  const [className, text] = STATUS[status]
  $('#status').hidden = false
  $('#status').className = `badge ${className}`
  put($('#status'), text)
  put($('#host'), inert(`${host} · ${version}`))
}

function showFindings(findings) {
  $('#findings').hidden = !findings.length
  fill($('#findings ul'), findings, (finding) => finding.part, ({ part, status, output }) =>
    el('li', {}, el('div', { class: 'what' }, el('p', { class: 'head' }, el('span', { class: `badge ${STATUS[status][0]}` }, PARTS[part] ?? part)), el('p', {}, words(output)))))
}

function showTiles({ reads, upstream, queue }) {
  tile('hit-ratio', percent(reads.hit_ratio), reads.hit_ratio == null ? 'nobody asked in the last minute' : 'in the last minute')
  tile('reads', number(reads.per_s), `on ${count(reads.connections, 'connection')}`)
  tile('upstream', number(upstream.per_s), `of ${number(upstream.budget_per_s)} that the fleet may`)
  if (!queue) {
    for (const name of ['waiting', 'dead', 'workers']) tile(name, '–', 'the queue does not answer', 'bad')
    return
  }
  const held = [queue.paused && 'all are paused', queue.late_s >= 60 && `late by ${span(queue.late_s)}`, queue.delayed && `${queue.delayed} for their time`, queue.parked && `${queue.parked} held`]
  const waits = queue.ready + queue.delayed + queue.parked
  tile('waiting', number(waits), held.filter(Boolean).join(', ') || 'none held up', queue.late_s >= 600 ? 'bad' : '')
  tile('dead', number(queue.dead), `${count(queue.done, 'other is', 'others are')} over`, queue.dead ? 'bad' : '')
  tile('workers', number(queue.workers), `${number(queue.active)} under way`, queue.workers ? '' : 'bad')
}

function showUpstream({ reads, upstream }) {
  const closed = upstream.closed_for_s
  $('#breaker').className = `badge ${BREAKER[upstream.breaker] ?? 'odd'}`
  put($('#breaker'), closed ? `${upstream.breaker}, nobody asks for ${span(closed)}` : upstream.breaker)
  $('#budget').value = Math.min(1, upstream.per_s / upstream.budget_per_s)
  put($('#budget-text'), `${number(upstream.per_s)} of ${number(upstream.budget_per_s)} a second`)
  $('#memory').value = reads.memory_limit_bytes ? reads.memory_bytes / reads.memory_limit_bytes : 0
  put($('#memory-text'), `${number(reads.memory_bytes / MIB)} of ${number(reads.memory_limit_bytes / MIB)} MiB`)
  const facts = { 'answers in memory': reads.entries, 'requests to the API': upstream.total, 'repeated of those': upstream.retries, 'not made': upstream.refusals, 'questions under way': upstream.flights, 'readers who wait': reads.waiting, 'processes of this host': reads.processes, 'Redis for the cache': upstream.store }
  const list = $('#api-facts')
  if (!list.children.length) list.append(...Object.keys(facts).map((name) => el('div', {}, el('dt', {}, name), el('dd', {}, ''))))
  Object.values(facts).forEach((value, at) => put($('dd', list.children[at]), typeof value === 'number' ? value.toLocaleString('en') : value))
}

function showPause(queue) {
  const button = $('#pause-all')
  button.hidden = !queue
  if (!queue) return
  paused = queue.paused
  button.className = paused ? 'main' : ''
  put(button, paused ? 'Resume all posts' : 'Pause all posts')
}

function show(state) {
  const known = steps.at(-1)?.at ?? 0
  for (const [at, reads, ratio, upstream, published, failed] of state.steps) {
    if (at > known + 1) steps.push({ at, reads, ratio, upstream, published, failed })
  }
  steps = steps.filter((step) => step.at > state.at - HOUR_S)
  showHead(state)
  showFindings(state.findings)
  showTiles(state)
  showUpstream(state)
  showPause(state.queue)
  for (const plot of plots) plot.show(steps, state.at)
  lists.show(state)
  age(document, state.at)
}

function live(text, className = '') {
  const node = $('#live')
  node.className = `live ${className}`
  put(node, text)
}

function listen() {
  steps = []
  source = new EventSource('/ops/events')
  source.addEventListener('state', (event) => {
    live('live', 'good')
    show(JSON.parse(event.data))
  })
  source.addEventListener('error', () => {
    live('reconnecting')
    if (source?.readyState === EventSource.CLOSED) refused()
  })
}

// The browser has given up: the session is over, or too many look.
async function refused() {
  rest()
  try {
    await ask('GET', 'queue')
  } catch (error) {
    say(error.message, true)
  }
  setTimeout(() => document.hidden || source || listen(), AGAIN_MS)
}

function rest() {
  source?.close()
  source = null
}

document.addEventListener('visibilitychange', () => {
  if (document.hidden) rest()
  else if (!source) listen()
})
$('#pause-all').addEventListener('click', async () => {
  if (paused) await lists.act('POST', 'resume', {}, 'Posts go out again.')
  else if (await sure('Pause everything? Posts are taken in and wait, on all hosts.', 'Pause')) await lists.act('POST', 'pause', {}, 'Everything is paused.')
})
listen()
