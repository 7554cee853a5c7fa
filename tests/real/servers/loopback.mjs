// Where the test network may listen: on loopback, and nowhere else.
import net from 'node:net'
import { once } from 'node:events'

const LOOPBACK = '127.0.0.1'

/**
 * Turn every listen(port) of this process into one on loopback.
 * The reference servers name no host and would be open to the whole network of the machine.
 */
export function stayOnLoopback() {
  const { listen } = net.Server.prototype
  net.Server.prototype.listen = function listenOnLoopback(...args) {
    const [first] = args
    const wanted = typeof first === 'object' && first !== null ? first : { port: first ?? 0 }
    if (!Number.isInteger(Number(wanted.port))) return listen.apply(this, args)
    const whenListening = args.findLast((argument) => typeof argument === 'function')
    return listen.call(this, { ...wanted, host: LOOPBACK }, whenListening)
  }
}

/** `count` different free ports: all are held until the last is found, so that none is given twice. */
export async function freePorts(count) {
  const holders = Array.from({ length: count }, () => net.createServer().listen({ port: 0, host: LOOPBACK }))
  await Promise.all(holders.map((holder) => once(holder, 'listening')))
  const ports = holders.map((holder) => holder.address().port)
  await Promise.all(holders.map((holder) => new Promise((closed) => holder.close(closed))))
  return ports
}

/** Ask `condition` again and again until it holds; an Error naming `what` when it did not within `ms`. */
export async function until(what, condition, ms = 60_000) {
  const deadline = Date.now() + ms
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`${what}: not within ${ms} ms`)
    await new Promise((resume) => setTimeout(resume, 40))
  }
}
