// Postgres and Redis for the AppView: private, empty, on loopback, gone with this process.
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import { freePorts, until } from './loopback.mjs'

const POSTGRES_HOME = '/usr/lib/postgresql'
// Nothing of this must survive a crash, so nothing waits for the disk.
const POSTGRES_OPTIONS = {
  listen_addresses: '127.0.0.1',
  unix_socket_directories: '',
  max_connections: '120',
  fsync: 'off',
  synchronous_commit: 'off',
  full_page_writes: 'off',
}

/** Start both in `directory`; `lost(name)` is called when one ends by itself. */
export async function startStores(directory, lost) {
  const [postgresPort, redisPort] = await freePorts(2)
  const children = [startPostgres(directory, postgresPort, lost), startRedis(directory, redisPort, lost)]
  await until('Postgres answers', () => postgresAnswers(postgresPort))
  await until('Redis answers', () => redisAnswers(redisPort))
  return {
    environment: {
      DB_POSTGRES_URL: `postgres://feeds@127.0.0.1:${postgresPort}/postgres`,
      DB_POSTGRES_SCHEMA: 'feeds',
      REDIS_HOST: `127.0.0.1:${redisPort}`,
    },
    stop: () => Promise.all(children.map((child) => child.end())),
  }
}

function startPostgres(directory, port, lost) {
  const data = path.join(directory, 'postgres')
  fs.mkdirSync(data, { mode: 0o700 })
  if (process.getuid() === 0) fs.chownSync(data, accountNumber('-u'), accountNumber('-g'))
  const [initdb, ...initdbArguments] = unprivileged(postgresTool('initdb'), [
    '--pgdata', data, '--username', 'feeds', '--auth', 'trust', '--encoding', 'UTF8', '--no-locale', '--no-sync',
  ])
  execFileSync(initdb, initdbArguments, { cwd: data, stdio: ['ignore', 'ignore', 'inherit'] })
  const options = Object.entries(POSTGRES_OPTIONS).flatMap(([name, value]) => ['-c', `${name}=${value}`])
  const command = unprivileged(postgresTool('postgres'), ['-D', data, '-p', String(port), ...options])
  // SIGINT is Postgres's "disconnect everybody and stop"; SIGTERM would wait for the AppView's pool.
  return supervised('postgres', command, { cwd: data, log: path.join(directory, 'postgres.log'), signal: 'SIGINT', lost })
}

function startRedis(directory, port, lost) {
  const options = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', directory]
  const command = mortal('SIGTERM', 'redis-server', options)
  return supervised('redis', command, { cwd: directory, log: path.join(directory, 'redis.log'), signal: 'SIGTERM', lost })
}

/** A child process whose end is awaited, and reported when nobody asked for it. */
function supervised(name, [command, ...argv], { cwd, log, signal, lost }) {
  const output = fs.openSync(log, 'a')
  const child = spawn(command, argv, { cwd, stdio: ['ignore', output, output] })
  fs.closeSync(output)
  let asked = false
  const ended = new Promise((resolve) => child.once('close', resolve))
  child.once('error', (error) => lost(`${name} did not start: ${error.message}`))
  ended.then(() => asked || lost(`${name} ended by itself: ${fs.readFileSync(log, 'utf8').slice(-2000)}`))
  return {
    end: () => {
      asked = true
      child.kill(signal)
      return ended
    },
  }
}

/** The command, to be killed by the kernel should this process die without a word. */
function mortal(signal, command, argv) {
  return ['setpriv', '--pdeathsig', signal.replace('SIG', ''), command, ...argv]
}

/** Postgres refuses to run as root: there it runs as Debian's postgres user. */
function unprivileged(command, argv) {
  const [setpriv, ...rest] = mortal('SIGINT', command, argv)
  const identity = ['--reuid', 'postgres', '--regid', 'postgres', '--clear-groups']
  return process.getuid() === 0 ? [setpriv, ...identity, ...rest] : [setpriv, ...rest]
}

function accountNumber(flag) {
  return Number(execFileSync('id', [flag, 'postgres'], { encoding: 'utf8' }))
}

function postgresTool(name) {
  const versions = fs.readdirSync(POSTGRES_HOME).map(Number).filter(Boolean)
  return path.join(POSTGRES_HOME, String(Math.max(...versions)), 'bin', name)
}

function postgresAnswers(port) {
  return spawnSync(postgresTool('pg_isready'), ['-q', '-h', '127.0.0.1', '-p', String(port)]).status === 0
}

function redisAnswers(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, '127.0.0.1', () => socket.write('PING\r\n'))
    socket.once('data', (reply) => resolve(reply.toString().startsWith('+PONG')))
    socket.once('error', () => resolve(false))
    socket.once('data', () => socket.destroy())
  })
}
