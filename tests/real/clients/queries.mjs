// One request for each query method of the lexicons a widget may use, with every required parameter:
// node queries.mjs < facts.json prints {"nsid": "/xrpc/nsid?…", …}.
import { text } from 'node:stream/consumers'
import { schemas } from '@atproto/api'

const NAMESPACES = /^app\.bsky\.(actor|feed|graph)\./
const { actor, did, uri } = JSON.parse(await text(process.stdin))
const byFormat = { 'at-identifier': actor, handle: actor, did, 'at-uri': uri }

function target({ id, defs }) {
  const { required = [], properties } = defs.main.parameters ?? {}
  const query = new URLSearchParams()
  for (const name of required) {
    const { format } = properties[name].items ?? properties[name]
    query.append(name, byFormat[format] ?? 'anything')
  }
  return `/xrpc/${id}?${query}`
}

const queries = schemas.filter(({ id, defs }) => NAMESPACES.test(id) && defs.main?.type === 'query')
process.stdout.write(JSON.stringify(Object.fromEntries(queries.map((schema) => [schema.id, target(schema)]))))
