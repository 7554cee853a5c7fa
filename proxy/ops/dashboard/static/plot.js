// A line or two over the last hour, drawn as SVG; pointer and arrow keys read values off it.

const HOUR_S = 3600
const STEP_S = 60
const GAP_S = 150
const HEIGHT = 150
const PAD = { left: 44, right: 10, top: 10, bottom: 22 }
const SVG = 'http://www.w3.org/2000/svg'

function shape(name, attributes, text) {
  const node = document.createElementNS(SVG, name)
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value)
  if (text != null) node.textContent = text
  return node
}

// The next round number: 1, 2, 5, 10, 20 …
function roundUp(value) {
  const size = 10 ** Math.floor(Math.log10(value))
  return [1, 2, 5, 10].map((factor) => factor * size).find((round) => round >= value * 0.999)
}

// Steps of five seconds, put together to fewer. `weigh` tells how much a value counts.
function gathered(steps, series) {
  const places = new Map()
  for (const step of steps) {
    const at = Math.ceil(step.at / STEP_S) * STEP_S
    if (!places.has(at)) places.set(at, [])
    places.get(at).push(step)
  }
  return [...places].map(([at, group]) => ({
    at,
    values: series.map(({ value, weigh = () => 1 }) => {
      const known = group.filter((step) => value(step) != null)
      const weight = known.reduce((sum, step) => sum + weigh(step), 0)
      return weight ? known.reduce((sum, step) => sum + value(step) * weigh(step), 0) / weight : null
    }),
  }))
}

export class Plot {
  // `series`: { name, value(step), weigh?(step) }; `format(number)`; `top`: the scale's end, else as it comes.
  constructor(figure, series, format, { top, unit = '' } = {}) {
    this.area = figure.querySelector('.area')
    this.reading = figure.querySelector('.reading')
    this.series = series
    this.format = format
    this.top = top
    this.unit = unit
    this.points = []
    this.chosen = null
    this.now = 0
    new ResizeObserver(() => this.draw()).observe(this.area)
    this.area.addEventListener('pointermove', (event) => this.point(event))
    this.area.addEventListener('pointerleave', () => this.choose(null))
    this.area.addEventListener('blur', () => this.choose(null))
    this.area.addEventListener('keydown', (event) => this.key(event))
  }

  show(steps, now) {
    this.now = now
    this.points = gathered(steps, this.series).filter((point) => point.at > now - HOUR_S)
    if (this.chosen != null) this.chosen = Math.min(this.chosen, this.points.length - 1)
    this.draw()
  }

  x(at) {
    const inner = this.width - PAD.left - PAD.right
    return PAD.left + inner * Math.min(1, 1 - (this.now - at) / HOUR_S)
  }

  y(value) {
    return HEIGHT - PAD.bottom - (HEIGHT - PAD.bottom - PAD.top) * Math.min(1, value / this.scale)
  }

  draw() {
    this.width = Math.max(200, Math.round(this.area.clientWidth))
    this.scale = this.top ?? roundUp(Math.max(0.1, ...this.points.flatMap((point) => point.values)))
    const svg = shape('svg', { viewBox: `0 0 ${this.width} ${HEIGHT}`, 'aria-hidden': 'true', focusable: 'false' })
    svg.append(...this.grid(), ...this.series.flatMap((one, index) => this.line(index)), ...this.cursor())
    this.area.replaceChildren(svg)
    this.say()
  }

  grid() {
    const lines = [0, 0.5, 1].flatMap((part) => {
      const y = this.y(part * this.scale)
      return [
        shape('line', { class: 'grid', x1: PAD.left, x2: this.width - PAD.right, y1: y, y2: y }),
        shape('text', { class: 'scale', x: PAD.left - 6, y: y + 4, 'text-anchor': 'end' }, this.format(part * this.scale)),
      ]
    })
    const minutes = this.width < 420 ? [60, 30, 0] : [60, 45, 30, 15, 0]
    const times = minutes.map((ago) => {
      const anchor = ago === 60 ? 'start' : ago ? 'middle' : 'end'
      const text = ago ? `−${ago} min` : 'now'
      return shape('text', { class: 'scale', x: this.x(this.now - ago * 60), y: HEIGHT - 5, 'text-anchor': anchor }, text)
    })
    return [...lines, ...times]
  }

  line(index) {
    const paths = []
    let run = []
    const close = () => {
      if (!run.length) return
      const way = run.map(([x, y], at) => `${at ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`).join('')
      const [[first], [last]] = [run[0], run.at(-1)]
      const base = this.y(0).toFixed(1)
      if (!index) paths.push(shape('path', { class: 'under', d: `${way}L${last.toFixed(1)} ${base}L${first.toFixed(1)} ${base}Z` }))
      // A single point is a dot: its line has round ends.
      paths.push(shape('path', { class: `series s${index}`, d: run.length > 1 ? way : `${way}h.01` }))
      run = []
    }
    let before = -Infinity
    for (const { at, values } of this.points) {
      if (values[index] == null || at - before > GAP_S) close()
      if (values[index] != null) {
        run.push([this.x(at), this.y(values[index])])
        before = at
      }
    }
    close()
    return paths
  }

  cursor() {
    const point = this.points[this.chosen]
    if (!point) return []
    const x = this.x(point.at)
    const dots = point.values.flatMap((value, index) => (value == null ? [] : [shape('circle', { class: `dot s${index}`, cx: x, cy: this.y(value), r: 4 })]))
    return [shape('line', { class: 'cursor', x1: x, x2: x, y1: PAD.top, y2: HEIGHT - PAD.bottom }), ...dots]
  }

  say() {
    const point = this.points[this.chosen] ?? this.points.at(-1)
    const clock = point && new Date(point.at * 1000).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' })
    const parts = this.series.map(({ name }, index) => {
      const value = point?.values[index]
      const text = value == null ? '–' : `${this.format(value)}${this.unit}`
      return { index, name, text }
    })
    const time = document.createElement('span')
    time.textContent = this.chosen == null || !point ? '' : clock
    this.reading.replaceChildren(
      time,
      ...parts.map(({ index, name, text }) => {
        const node = document.createElement('span')
        node.className = `key s${index}`
        node.textContent = name ? `${name} ${text}` : text
        return node
      }),
    )
    this.area.setAttribute('aria-valuemax', Math.max(0, this.points.length - 1))
    this.area.setAttribute('aria-valuenow', this.chosen ?? Math.max(0, this.points.length - 1))
    const told = parts.map(({ name, text }) => `${name} ${text}`.trim()).join(', ')
    this.area.setAttribute('aria-valuetext', point ? `${clock}: ${told}` : 'nothing yet')
  }

  choose(index) {
    if (index === this.chosen) return
    this.chosen = index
    this.draw()
  }

  point(event) {
    if (!this.points.length) return
    const left = event.clientX - this.area.getBoundingClientRect().left
    const far = this.points.map((point) => Math.abs(this.x(point.at) - left))
    this.choose(far.indexOf(Math.min(...far)))
  }

  key(event) {
    const last = this.points.length - 1
    const at = this.chosen ?? last
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - 10, PageUp: at + 10, Home: 0, End: last }[event.key]
    if (to == null || last < 0) return
    event.preventDefault()
    this.choose(Math.max(0, Math.min(last, to)))
  }
}
