// A feed generator of our own: the AppView asks it for the skeleton of a custom feed.
import http from 'node:http'
import { once } from 'node:events'

/**
 * Its DID is a did:web, which resolves on this very server and needs no registration.
 * `feeds` maps at:// URIs to lists of post URIs and may be filled later.
 */
export async function startFeedGenerator() {
  const feeds = new Map()
  const server = http.createServer((request, response) => {
    const body = answer(new URL(request.url, 'http://feeds.invalid'))
    response.writeHead(body ? 200 : 400, { 'content-type': 'application/json' })
    response.end(JSON.stringify(body ?? { error: 'UnknownFeed', message: 'no such feed' }))
  })
  server.listen(0)
  await once(server, 'listening')
  const { port } = server.address()
  const did = `did:web:localhost%3A${port}`

  function answer({ pathname, searchParams }) {
    switch (pathname) {
      case '/.well-known/did.json':
        return didDocument(did, port)
      case '/xrpc/app.bsky.feed.getFeedSkeleton': {
        const posts = feeds.get(searchParams.get('feed'))
        return posts && skeleton(posts, searchParams)
      }
      default:
        return null
    }
  }

  return { did, feeds, stop: () => new Promise((closed) => server.close(closed)) }
}

function didDocument(did, port) {
  const service = { id: '#bsky_fg', type: 'BskyFeedGenerator', serviceEndpoint: `http://localhost:${port}` }
  return { '@context': ['https://www.w3.org/ns/did/v1'], id: did, service: [service] }
}

function skeleton(posts, parameters) {
  const start = Number(parameters.get('cursor') ?? 0)
  const end = start + Number(parameters.get('limit') ?? 50)
  const feed = posts.slice(start, end).map((post) => ({ post }))
  return end < posts.length ? { feed, cursor: String(end) } : { feed }
}
