// Accounts, dead letters and posts: rows, and what may be done about each.
import { $, age, count, el, fill, when, words } from './dom.js'

const PAGE = 25
const WAITS = new Set(['pending', 'retrying'])
const STATES = { open: 'good', completed: 'good', paused: 'still', canceled: 'still', pending: 'still', partial: 'bad', failed: 'bad', credentials: 'bad' }
const TELL = { credentials: 'login refused', breaker: 'server fails' }

export const badge = (state) => el('span', { class: `badge ${STATES[state] ?? 'odd'}` }, TELL[state] ?? state)

function button(label, about, act, className = '') {
  return el('button', { type: 'button', class: className, 'aria-label': `${label} ${about}`, 'data-act': label, click: act }, label)
}

const row = (head, facts, acts) =>
  el('li', {}, el('div', { class: 'what' }, el('p', { class: 'head' }, ...head), ...facts), el('div', { class: 'acts' }, ...acts))

const facts = (...parts) => el('p', { class: 'hint' }, ...parts.filter((part) => part != null).flatMap((part, at) => (at ? [' · ', part] : [part])))


export class Lists {
  // `ask(method, path, document)` does it; `sure(question, yes)` has it confirmed; `say(text)` tells what came of it;
  // `heard(queue)` is how the queue stands after that.
  constructor({ ask, sure, say, heard }) {
    Object.assign(this, { ask, sure, say, heard })
    this.now = Date.now() / 1000
    this.many = { letters: PAGE, jobs: PAGE }
    this.opened = new Set()
    this.known = ''
    this.filters = $('#filters')
    this.filters.addEventListener('input', () => this.jobs())
    this.filters.addEventListener('submit', (event) => event.preventDefault())
    for (const name of ['letters', 'jobs']) {
      $(`#more-${name}`).addEventListener('click', () => {
        this.many[name] += 2 * PAGE
        this[name]()
      })
    }
  }

  // Whatever a state says; lists are asked for only when something has moved.
  show(state) {
    this.now = state.at
    this.sites(state.sites)
    this.accounts(state.accounts ?? [])
    const moved = JSON.stringify([state.queue, state.accounts, state.sites], (key, value) => (key === 'late_s' ? 0 : value))
    if (moved !== this.known) {
      this.known = moved
      this.letters()
      this.jobs()
    }
  }

  async act(method, path, document, said) {
    try {
      const answer = await this.ask(method, path, document)
      this.say(typeof said === 'function' ? said(answer) : said)
      const { accounts, ...queue } = await this.ask('GET', 'queue')
      this.accounts(accounts)
      this.heard(queue)
    } catch (error) {
      this.say(error.message, true)
    }
    this.letters()
    this.jobs()
  }

  accounts(lines) {
    fill($('#accounts'), lines, (line) => line.account, (line) => this.account(line), 'No accounts: name them in feedproxy.toml.')
    age($('#accounts'), this.now)
  }

  account(line) {
    const { account, state } = line
    const acts = []
    if (['breaker', 'credentials'].includes(state)) {
      acts.push(button('Try again', account, () => this.act('POST', 'resume', { account }, `${account} is tried again.`)))
    }
    if (state === 'paused') {
      acts.push(button('Resume', account, () => this.act('POST', 'resume', { account }, `${account} goes on.`)))
    } else {
      acts.push(button('Pause', account, () => this.act('POST', 'pause', { account }, `${account} is paused: its posts wait.`)))
    }
    const told = facts(
      line.identifier && words(line.identifier),
      `${line.waiting}\u00a0waiting`,
      line.sending && 'sending',
      line.failures_in_a_row ? `${count(line.failures_in_a_row, 'failure')} in a row` : null,
      line.until && el('span', {}, 'until ', when(line.until)),
      line.workers ? null : 'no worker serves it',
    )
    return row([words(account, 'name'), badge(state)], [told], acts)
  }

  async letters() {
    try {
      const [{ errors }, { dead, cursor }] = await Promise.all([this.ask('GET', 'dead/summary'), this.ask('GET', `dead?limit=${Math.min(500, this.many.letters)}`)])
      fill($('#errors'), errors.filter((error) => error.count > 1), (error) => `${error.account} ${error.reason}`, (error) => this.error(error))
      fill($('#letters'), dead, (letter) => `${letter.job} ${letter.account}`, (letter) => this.letter(letter), 'Nothing has failed.')
      $('#more-letters').hidden = !cursor || this.many.letters >= 500
      age(document, this.now)
    } catch (error) {
      this.say(error.message, true)
    }
  }

  error({ account, reason, count: number, last_at }) {
    const filter = { account, reason }
    const them = `${number} posts of ${account}: ${reason}`
    const drop = async () => {
      if (await this.sure(`Give up ${number} posts of ${account}? They end as canceled.`, 'Give up')) {
        this.act('POST', 'dead/drop', filter, ({ dropped }) => `${count(dropped, 'post')} given up.`)
      }
    }
    const retry = () => this.act('POST', 'dead/retry', filter, ({ retried }) => `${count(retried, 'post')} tried again.`)
    const told = facts(el('span', {}, 'last ', when(last_at)))
    return row([el('span', {}, el('strong', {}, `${number} posts`), ' of ', words(account, 'name'))], [el('p', { class: 'error' }, words(reason)), told], [
      button('Retry all', them, retry, 'main'),
      button('Give up all', them, drop),
    ])
  }

  letter({ job, account, site, post, group, died_at, attempts, error }) {
    const about = `${post} on ${account}`
    const cancel = async () => {
      if (await this.sure(`Give up post ${post}? It ends as canceled.`, 'Give up')) this.act('DELETE', `jobs/${job}`, undefined, `Post ${post} is given up.`)
    }
    const retry = () => this.act('POST', `jobs/${job}/retry`, {}, `Post ${post} is tried again.`)
    const told = facts(el('span', {}, 'site ', words(site)), group && el('span', {}, 'group ', words(group)), count(attempts, 'attempt'), when(died_at))
    return row([el('span', {}, words(post, 'name'), ' on ', words(account, 'name'))], [el('p', { class: 'error' }, words(error)), told], [
      button('Retry', about, retry, 'main'),
      button('Cancel', about, cancel),
    ])
  }

  sites(names) {
    const select = $('#site')
    if ([...select.options].map((option) => option.value).join('\n') === names.join('\n')) return
    const chosen = select.value
    select.replaceChildren(...names.map((name) => el('option', { value: name }, name)))
    if (names.includes(chosen)) select.value = chosen
    this.filters.hidden = !names.length
  }

  async jobs() {
    const { site, status, group } = Object.fromEntries(new FormData(this.filters))
    if (!site) return fill($('#jobs'), [], () => '', () => null, 'No sites: name them in feedproxy.toml.')
    const query = new URLSearchParams({ site, status, group: group.trim(), limit: Math.min(500, this.many.jobs) })
    const turn = (this.turn = query.toString())
    try {
      const { jobs, cursor } = await this.ask('GET', `jobs?${query}`)
      if (this.turn !== turn) return // another question was asked meanwhile
      fill($('#jobs'), jobs, (job) => job.id, (job) => this.job(job), 'No such posts.')
      $('#more-jobs').hidden = !cursor || this.many.jobs >= 500
      age(document, this.now)
    } catch (error) {
      this.say(error.message, true)
    }
  }

  job({ id, post, group, priority, created_at, accounts }) {
    const states = Object.values(accounts)
    const acts = []
    if (states.includes('failed')) {
      acts.push(button('Retry', `post ${post}`, () => this.act('POST', `jobs/${id}/retry`, {}, `Post ${post} is tried again.`)))
    }
    if (states.some((state) => WAITS.has(state) || state === 'failed')) {
      const cancel = async () => {
        if (await this.sure(`Cancel post ${post}? What has not been sent stays unsent.`, 'Cancel it')) this.act('DELETE', `jobs/${id}`, undefined, `Post ${post} is canceled, as far as it was not sent.`)
      }
      acts.push(button('Cancel', `post ${post}`, cancel))
    }
    const each = Object.entries(accounts).map(([name, state]) => el('span', {}, words(name), ' ', badge(state)))
    const told = facts(group && el('span', {}, 'group ', words(group)), priority === 'normal' ? null : priority, when(created_at))
    return row([words(post, 'name'), ...each], [this.story(id, told.childNodes)], acts)
  }

  // What happened to a post and what it waits for, asked for when somebody wants to know.
  story(id, told) {
    const box = el('div', {}, '…')
    const details = el('details', {}, el('summary', { 'data-act': 'why' }, ...told), box)
    details.addEventListener('toggle', async () => {
      this.opened[details.open ? 'add' : 'delete'](id)
      if (!details.open) return
      try {
        box.replaceChildren(...(await this.ask('GET', `jobs/${id}`)).accounts.map(delivery))
        age(box, this.now)
      } catch (error) {
        box.replaceChildren(error.message)
      }
    })
    details.open = this.opened.has(id)
    return details
  }
}

function delivery({ account, status, uri, attempts, waiting_for, history, degraded, error }) {
  const lines = [
    ...waiting_for.map(({ sentence, until }) => el('li', {}, words(sentence), until ? ', ' : null, until && when(until))),
    ...history.map(({ at, reason }) => el('li', {}, when(at), ': ', words(reason))),
    ...(error && !history.length ? [el('li', {}, words(error))] : []),
    ...degraded.map((reason) => el('li', {}, 'without: ', words(reason))),
    ...(uri ? [el('li', {}, el('code', {}, words(uri)))] : []),
  ]
  return el('section', {}, el('p', {}, words(account, 'name'), ' ', badge(status), ` ${count(attempts, 'attempt')}`), el('ul', {}, ...lines))
}
