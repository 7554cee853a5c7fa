// What @atproto/api makes of a service: node api.mjs SERVICE < facts.json prints a report as JSON.
// The client checks every answer against the lexicons and throws at what they do not allow.
import { text } from 'node:stream/consumers'
import { AtpAgent, BskyAgent, XRPCError } from '@atproto/api'

const PAGE = 7
const service = process.argv[2]
const { actor, did, labeler, feed, post, posts } = JSON.parse(await text(process.stdin))

async function answer(question) {
  const { success, data, headers } = await question
  return { success, data, labelers: headers['atproto-content-labelers'] ?? null }
}

async function refusal(question) {
  try {
    await question
  } catch (error) {
    const { status, error: code, message } = error
    return { understood: error instanceof XRPCError, kind: error.constructor.name, status, code, message }
  }
  throw new Error('this should have been refused')
}

/** URIs of the whole feed, page by page, until there is no cursor. */
async function everyPage(agent) {
  const pages = []
  let cursor
  do {
    const { data } = await agent.getAuthorFeed({ actor, limit: PAGE, cursor })
    pages.push(data.feed.map((item) => item.post.uri))
    cursor = data.cursor
  } while (cursor)
  return pages
}

const agent = new AtpAgent({ service })
const elder = new BskyAgent({ service })
const labelled = new AtpAgent({ service })
labelled.configureLabelers([labeler])

const report = {
  getAuthorFeed: await answer(agent.getAuthorFeed({ actor, limit: 30, filter: 'posts_no_replies', includePins: true })),
  getProfile: await answer(agent.getProfile({ actor })),
  getProfiles: await answer(agent.getProfiles({ actors: [actor, did] })),
  getPostThread: await answer(agent.getPostThread({ uri: post, depth: 6 })),
  getPosts: await answer(agent.getPosts({ uris: posts })),
  resolveHandle: await answer(agent.resolveHandle({ handle: actor })),
  getFeed: await answer(agent.app.bsky.feed.getFeed({ feed, limit: 5 })),
  bskyAgent: await answer(elder.getAuthorFeed({ actor })),
  configureLabelers: await answer(labelled.getProfile({ actor })),
  unknownProfile: await refusal(agent.getProfile({ actor: 'nobody.test' })),
  unknownPost: await refusal(agent.getPostThread({ uri: `at://${did}/app.bsky.feed.post/3aaaaaaaaaaa2` })),
  pages: await everyPage(agent),
}
process.stdout.write(JSON.stringify(report))
