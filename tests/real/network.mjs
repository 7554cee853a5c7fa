// A whole AT Protocol network on loopback: PLC directory, PDS and AppView, with their Postgres and Redis.
// With --pds-only: a PLC directory and two PDSs, empty, and nothing else; up in a third of the time.
//
// Prints one line of JSON when it is up and seeded:
//   {"ready": {"urls": {…}, "accounts": {…}, "records": {…}, "state": "/tmp/…"}}
// Then it takes commands from stdin, a line of JSON each, and answers each with a line:
//   {"id": 1, "do": "publish", "account": "alice", "text": "hi"}  ->  {"id": 1, "done": {…}} or {"id": 1, "error": "…"}
// It ends, and takes everything it started and wrote with it, when stdin closes or on SIGTERM.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import readline from 'node:readline'
import { freePorts, stayOnLoopback } from './servers/loopback.mjs'
import { startStores } from './servers/stores.mjs'

const CLEANUP_WITHIN_MS = 10_000
const SEEDED_WITHIN_MS = 60_000

const state = fs.mkdtempSync(path.join(os.tmpdir(), 'feedproxy-real-'))
fs.chmodSync(state, 0o711) // Postgres, which may run as another user, passes through
const cleanups = [() => fs.rmSync(state, { recursive: true, force: true })]
let ending = false

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`)
console.log = console.error // stdout is for our lines alone

/** Undo what was done so far, newest first, and leave. */
async function end(code) {
  if (ending) return
  ending = true
  setTimeout(() => process.exit(1), CLEANUP_WITHIN_MS * 2).unref()
  for (const undo of cleanups.reverse()) {
    const patience = new Promise((resolve) => setTimeout(resolve, CLEANUP_WITHIN_MS).unref())
    await Promise.race([patience, Promise.resolve().then(undo)]).catch((error) => console.error('cleanup:', error))
  }
  process.exit(code)
}

function die(reason) {
  // What ends while we end is no news.
  if (ending) return
  console.error(reason)
  end(1)
}

/** The reference servers are configured by the environment that they find when they are loaded. */
function prepareEnvironment(more = {}) {
  const scratch = path.join(state, 'pds')
  fs.mkdirSync(scratch)
  Object.assign(process.env, more, { TMPDIR: scratch, LOG_ENABLED: 'false', NODE_ENV: 'test' })
}

async function startServers() {
  const stores = await startStores(state, die)
  cleanups.push(stores.stop)
  prepareEnvironment(stores.environment)
  const { TestNetwork } = await import('@atproto/dev-env')
  const [plc, pds, bsky, ozone] = await freePorts(4)
  const network = await TestNetwork.create({
    plc: { port: plc },
    pds: { port: pds, hostname: 'localhost' },
    bsky: { port: bsky, publicUrl: `http://localhost:${bsky}` },
    ozone: { port: ozone, chatUrl: 'http://localhost:9', chatDid: 'did:example:chat' },
  })
  cleanups.push(() => network.close())
  return network
}

async function seeded(network) {
  const { startFeedGenerator } = await import('./servers/feedgenerator.mjs')
  const { seed } = await import('./servers/seed.mjs')
  const feedGenerator = await startFeedGenerator()
  cleanups.push(feedGenerator.stop)
  const { people, records } = await seed(network.pds.url, feedGenerator)
  await network.processAll(SEEDED_WITHIN_MS)
  return { people, records }
}

async function serveCommands(commands, lines) {
  for await (const line of lines) {
    const { id, do: name, ...parameters } = JSON.parse(line)
    try {
      if (!Object.hasOwn(commands, name)) throw new Error(`no command is called ${name}`)
      say({ id, done: await commands[name](parameters) })
    } catch (error) {
      say({ id, error: String(error?.stack ?? error) })
    }
  }
}

async function main() {
  stayOnLoopback()
  // Whoever started us closes stdin, even by dying: that may happen while we are still starting.
  const lines = readline.createInterface({ input: process.stdin })
  lines.once('close', () => end(0))
  const { ready, commands } = await (process.argv.includes('--pds-only') ? pdsOnly() : wholeNetwork())
  say({ ready: { ...ready, state } })
  await serveCommands(commands, lines)
}

async function wholeNetwork() {
  const network = await startServers()
  const { people, records } = await seeded(network)
  const { commandsOf } = await import('./servers/commands.mjs')
  const accounts = Object.fromEntries(Object.entries(people).map(([name, author]) => [name, author.describe()]))
  const urls = { plc: network.plc.url, pds: network.pds.url, appview: network.bsky.url }
  return { ready: { urls, accounts, records }, commands: commandsOf(network, people) }
}

async function pdsOnly() {
  prepareEnvironment()
  const { startPdses } = await import('./servers/pdses.mjs')
  const pdses = await startPdses()
  cleanups.push(pdses.stop)
  return { ready: { urls: pdses.urls, accounts: {}, records: {} }, commands: pdses.commands }
}

for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => end(0))
// The AppView throws when a browser leaves in the middle of a picture; that is no reason to end.
const dieUnlessLeft = (error) => error?.code === 'ERR_STREAM_PREMATURE_CLOSE' || die(error)
process.on('uncaughtException', dieUnlessLeft)
process.on('unhandledRejection', dieUnlessLeft)
main().catch(die)
