// What a test may ask of the running network. Each command returns once the AppView knows of the change.
import { mockResolvers } from '@atproto/dev-env'
import { Author } from './seed.mjs'

const PROCESSED_WITHIN_MS = 30_000

export function commandsOf(network, people) {
  const settled = () => network.processAll(PROCESSED_WITHIN_MS)
  const person = (name) => people[name] ?? fail(`nobody is called ${name}`)

  return {
    /** A new account with the given posts: for tests that change what others rely on. */
    async createAccount({ name, posts = [] }) {
      people[name] = await Author.join(network.pds.url, name)
      const written = posts.length ? await people[name].posts(posts) : []
      await settled()
      return { ...people[name].describe(), posts: written }
    },

    async publish({ account, text }) {
      const written = await person(account).post(text, { createdAt: new Date().toISOString() })
      await settled()
      return written
    },

    async deletePost({ account, uri }) {
      await person(account).agent.deletePost(uri)
      await settled()
      return { uri }
    },

    async changeHandle({ account, handle }) {
      await person(account).agent.com.atproto.identity.updateHandle({ handle })
      await settled()
      return { handle }
    },

    async deactivate({ account }) {
      await person(account).agent.com.atproto.server.deactivateAccount({})
      await settled()
      return { did: person(account).did }
    },

    /** Suspend the account on the AppView, as its moderators do. */
    async takeDown({ account }) {
      const subject = { $type: 'com.atproto.admin.defs#repoRef', did: person(account).did }
      await network.bsky.getClient().com.atproto.admin.updateSubjectStatus(
        { subject, takedown: { applied: true, ref: 'test' } },
        { headers: network.bsky.adminAuthHeaders(), encoding: 'application/json' },
      )
      return { did: subject.did }
    },

    /** Close the AppView's listener and all its connections; its data stay. */
    async stopAppView() {
      await network.bsky.server.destroy()
      return { appview: network.bsky.url }
    },

    /** A new AppView server on the old port and data. */
    async startAppView() {
      const { constructor: AppView, ctx } = network.bsky.server
      const server = AppView.create({ config: ctx.cfg, signingKey: ctx.signingKey })
      mockResolvers(server.ctx.idResolver, network.pds)
      await server.start()
      network.bsky.server = server
      return { appview: network.bsky.url }
    },
  }
}

function fail(message) {
  throw new Error(message)
}
