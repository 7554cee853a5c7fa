// What the test network holds: five people, a feed of alice with one post of every kind,
// and a feed of erin with the rarer ones.
import { AtpAgent, RichText } from '@atproto/api'
import { png } from './pictures.mjs'

const FILLERS = 60
const MINUTE = 60_000
const PROFILES = {
  alice: { displayName: 'Alice', description: 'The newsroom of example.com. https://example.com' },
  bob: { displayName: 'Bob', description: 'Reads alice and answers' },
  carol: { displayName: 'Carol', description: 'Likes things' },
  // Readers without a login are asked not to be shown dan: a label, which the AppView only passes on.
  dan: { displayName: 'Dan', description: 'Members only', labels: selfLabel('!no-unauthenticated') },
  erin: { displayName: 'إيرين — Erin', description: 'Everything that is seldom seen in a feed' },
}

/** Posts are dated a minute apart, so that every feed has one order only. */
function* minutesBefore(now, count) {
  for (let minute = count; minute > 0; minute -= 1) yield new Date(now - minute * MINUTE).toISOString()
}

/** An account of the PDS and what it writes. */
export class Author {
  #dates
  constructor(agent, password) {
    this.agent = agent
    this.password = password
    this.#dates = minutesBefore(Date.now(), 24 * 60)
  }

  static async join(service, name) {
    const agent = new AtpAgent({ service })
    const password = `${name} has a password`
    await agent.createAccount({ handle: `${name}.test`, email: `${name}@mail.test`, password })
    return new Author(agent, password)
  }

  get did() {
    return this.agent.session.did
  }

  get handle() {
    return this.agent.session.handle
  }

  describe() {
    return { did: this.did, handle: this.handle, password: this.password }
  }

  async write(collection, record, rkey) {
    const value = { $type: collection, createdAt: new Date().toISOString(), ...record }
    const target = { repo: this.did, collection, record: value }
    const { data } = rkey
      ? await this.agent.com.atproto.repo.putRecord({ ...target, rkey })
      : await this.agent.com.atproto.repo.createRecord(target)
    return { uri: data.uri, cid: data.cid }
  }

  post(text, rest = {}) {
    return this.write('app.bsky.feed.post', { text, langs: ['en'], createdAt: this.#dates.next().value, ...rest })
  }

  /** Many plain posts in one commit; their references, in order. */
  async posts(texts) {
    const writes = texts.map((text) => ({
      $type: 'com.atproto.repo.applyWrites#create',
      collection: 'app.bsky.feed.post',
      value: { $type: 'app.bsky.feed.post', text, langs: ['en'], createdAt: this.#dates.next().value },
    }))
    const { data } = await this.agent.com.atproto.repo.applyWrites({ repo: this.did, writes })
    return data.results.map(({ uri, cid }) => ({ uri, cid }))
  }

  async picture(width, height, colour) {
    const { data } = await this.agent.uploadBlob(png(width, height, colour), { encoding: 'image/png' })
    return data.blob
  }
}

/** Write everything; the named records and the people, as `network` hands them to the tests. */
export async function seed(service, feedGenerator) {
  const [alice, bob, carol, dan, erin] = await Promise.all(Object.keys(PROFILES).map((name) => Author.join(service, name)))
  const fillers = await alice.posts(Array.from({ length: FILLERS }, (_, index) => `filler post ${index + 1}`))
  const records = { filler1: fillers.at(0), filler60: fillers.at(-1) }
  records.dan1 = await dan.post('only for people with a login')
  records.bob1 = await bob.post('hello from bob')
  Object.assign(records, await kindsOfPosts(alice, bob, records.bob1))
  Object.assign(records, await conversation(alice, bob, records))
  await reactions(alice, bob, carol, records)
  await profiles({ alice, bob, carol, dan, erin }, records.facets)
  Object.assign(records, await collections(alice, bob, carol, feedGenerator, records))
  Object.assign(records, await rarerKindsOfPosts(erin, alice, records))
  return { people: { alice, bob, carol, dan, erin }, records }
}

async function kindsOfPosts(alice, bob, bobsPost) {
  const image = async (width, height, colour, alt) => ({
    image: await alice.picture(width, height, colour),
    alt,
    aspectRatio: { width, height },
  })
  const quoted = { $type: 'app.bsky.embed.record', record: bobsPost }
  const pair = [await image(400, 300, [200, 60, 60], 'a red rectangle'), await image(300, 400, [60, 60, 200], '')]
  const single = [await image(320, 200, [60, 160, 60], 'a green one')]
  const card = {
    uri: 'https://example.com/article?id=2',
    title: 'An example article',
    description: 'What a link card says below its title',
    thumb: await alice.picture(600, 315, [240, 200, 40]),
  }
  return {
    facets: await alice.post(...mentionLinkAndTag(bob.did)),
    images: await alice.post('two pictures', { embed: { $type: 'app.bsky.embed.images', images: pair } }),
    external: await alice.post('a link card', { embed: { $type: 'app.bsky.embed.external', external: card } }),
    quote: await alice.post('bob, quoted', { embed: quoted }),
    quoteWithMedia: await alice.post('bob, quoted with a picture', {
      embed: {
        $type: 'app.bsky.embed.recordWithMedia',
        record: quoted,
        media: { $type: 'app.bsky.embed.images', images: single },
      },
    }),
    labeled: await alice.post('labelled by its author', { labels: selfLabel('nudity') }),
  }
}

async function rarerKindsOfPosts(erin, alice, { dan1, feedgen, list, starterPack, labeler }) {
  const quoting = (record) => ({ embed: { $type: 'app.bsky.embed.record', record } })
  const image = async (width, height, colour, alt) => ({ image: await erin.picture(width, height, colour), alt })
  const several = (count) =>
    Promise.all(Array.from({ length: count }, (_, index) => image(300, 200 + 100 * index, [80 * index, 140, 120], `picture ${index + 1}`)))
  const pictures = async (count) => ({ embed: { $type: 'app.bsky.embed.images', images: await several(count) } })
  const deleted = await alice.post('soon to be gone')
  const thread = await erin.post('the first of a thread')
  const records = {
    rtl: await erin.post('مرحبا بالعالم! هذا نص من اليمين إلى اليسار, with a few English words.', { langs: ['ar'] }),
    lines: await erin.post('one line\n\nand another,\nas poems have them'),
    threePictures: await erin.post('three pictures', await pictures(3)),
    fourPictures: await erin.post('', await pictures(4)),
    video: await erin.post('a video', { embed: await video(erin) }),
    bareCard: await erin.post('a card without a picture', {
      embed: { $type: 'app.bsky.embed.external', external: { uri: 'https://www.example.com/', title: 'Bare', description: '' } },
    }),
    quotesDeleted: await erin.post('a quote of what is gone', quoting(deleted)),
    quotesMember: await erin.post('a quote of a member', quoting(dan1)),
    quotesFeed: await erin.post('a feed', quoting(feedgen)),
    quotesList: await erin.post('a list', quoting(list)),
    quotesPack: await erin.post('a starter pack', quoting(starterPack)),
    quotesLabeler: await erin.post('a labeler', quoting(labeler)),
    gallery: await erin.post('a gallery', { embed: { $type: 'app.bsky.embed.gallery', items: await several(5) } }),
    labeledPicture: await erin.post('a picture behind a cover', { ...(await pictures(1)), labels: selfLabel('porn') }),
    thread2: await erin.post('and the second', { reply: { root: thread, parent: thread } }),
  }
  await erin.agent.repost(dan1.uri, dan1.cid)
  await alice.agent.deletePost(deleted.uri)
  return records
}

/** A video that nobody has transcoded: what counts is that the AppView shows a poster for it. */
async function video(author) {
  const { data } = await author.agent.uploadBlob(Buffer.from('no frames at all'), { encoding: 'video/mp4' })
  return { $type: 'app.bsky.embed.video', video: data.blob, alt: 'a moving picture', aspectRatio: { width: 640, height: 360 } }
}

function mentionLinkAndTag(did) {
  const richText = new RichText({ text: 'Grüße 👋🏽 an @bob.test: https://example.com/article?id=1 über #atproto' })
  richText.detectFacetsWithoutResolution()
  for (const { features } of richText.facets) {
    // Without a resolution the detection leaves the handle where the DID belongs.
    for (const feature of features) if ('did' in feature) feature.did = did
  }
  return [richText.text, { facets: richText.facets }]
}

async function conversation(alice, bob, { bob1, facets }) {
  const aliceReplyToBob = await alice.post('alice replies', { reply: { root: bob1, parent: bob1 } })
  return {
    aliceReplyToBob,
    bobReplyToAlice: await bob.post('bob replies in turn', { reply: { root: bob1, parent: aliceReplyToBob } }),
    bobReplyToFacets: await bob.post('a good article', { reply: { root: facets, parent: facets } }),
    bobQuotesFacets: await bob.post('alice, quoted', { embed: { $type: 'app.bsky.embed.record', record: facets } }),
  }
}

async function reactions(alice, bob, carol, records) {
  await alice.agent.repost(records.bob1.uri, records.bob1.cid)
  for (const reader of [bob, carol]) await reader.agent.like(records.facets.uri, records.facets.cid)
  await bob.agent.follow(alice.did)
  await alice.agent.follow(bob.did)
}

async function profiles(people, pinnedPost) {
  for (const [index, [name, author]] of Object.entries(people).entries()) {
    const avatar = await author.picture(120, 120, [60 * index, 120, 255 - 60 * index])
    const pin = name === 'alice' ? { pinnedPost } : {}
    await author.write('app.bsky.actor.profile', { ...PROFILES[name], avatar, ...pin }, 'self')
  }
}

/** A custom feed, a list, a starter pack and a labeler. */
async function collections(alice, bob, carol, feedGenerator, { facets, images, bob1 }) {
  const feedgen = await alice.write(
    'app.bsky.feed.generator',
    { did: feedGenerator.did, displayName: 'Demo feed', description: 'Three posts' },
    'demo-feed',
  )
  feedGenerator.feeds.set(feedgen.uri, [facets.uri, images.uri, bob1.uri])
  const list = await alice.write('app.bsky.graph.list', { purpose: 'app.bsky.graph.defs#curatelist', name: 'Demo list' })
  for (const { did } of [bob, alice]) await alice.write('app.bsky.graph.listitem', { list: list.uri, subject: did })
  const starterPack = await alice.write('app.bsky.graph.starterpack', { name: 'Demo pack', list: list.uri })
  const labeler = await carol.write('app.bsky.labeler.service', { policies: { labelValues: ['rude'] } }, 'self')
  return { feedgen, list, starterPack, labeler }
}

function selfLabel(value) {
  return { $type: 'com.atproto.label.defs#selfLabels', values: [{ val: value }] }
}
