// A PLC directory and two PDSs, between which accounts move: what publishing is tried against.
import { AtpAgent } from '@atproto/api'
import { TestPds, TestPlc } from '@atproto/dev-env'
import { freePorts } from './loopback.mjs'
import { Author } from './seed.mjs'

export async function startPdses() {
  const [plcPort, onePort, otherPort] = await freePorts(3)
  const plc = await TestPlc.create({ port: plcPort })
  const start = (port, more = {}) => TestPds.create({ port, hostname: 'localhost', didPlcUrl: plc.url, ...more })
  // Limits of one are those of the world; tests of the other would run into them.
  const [pds, other] = [await start(onePort), await start(otherPort, { rateLimitsEnabled: true })]
  return {
    urls: { plc: plc.url, pds: pds.url, other: other.url },
    commands: commandsOf(pds, other),
    stop: async () => {
      await Promise.all([pds.close(), other.close()])
      await plc.close()
    },
  }
}

function commandsOf(pds, other) {
  const people = {}

  return {
    async createAccount({ name }) {
      people[name] = await Author.join(pds.url, name)
      return people[name].describe()
    },

    /** Write a post as another tool does. */
    async write({ account, record, rkey }) {
      return people[account].write('app.bsky.feed.post', record, rkey)
    },

    /** Delete a record as its author does. */
    async remove({ account, uri }) {
      const { did: repo, agent } = people[account]
      const [collection, rkey] = uri.split('/').slice(-2)
      await agent.com.atproto.repo.deleteRecord({ repo, collection, rkey })
      return { uri }
    },

    async changeHandle({ account, handle }) {
      await people[account].agent.com.atproto.identity.updateHandle({ handle })
      return { handle }
    },

    async deactivate({ account }) {
      await people[account].agent.com.atproto.server.deactivateAccount({})
      return { did: people[account].did }
    },

    /** End all sessions, as a changed password does. */
    async endSessions({ account }) {
      await pds.ctx.accountManager.db.db.deleteFrom('refresh_token').where('did', '=', people[account].did).execute()
      return { did: people[account].did }
    },

    /** Move the account to the other PDS, in the steps of https://atproto.com/guides/account-migration. */
    async move({ account }) {
      const { agent: leaving, did, handle, password } = people[account]
      const audience = { aud: other.ctx.cfg.service.did, lxm: 'com.atproto.server.createAccount' }
      const { data: permit } = await leaving.com.atproto.server.getServiceAuth(audience)
      const arriving = new AtpAgent({ service: other.url })
      await arriving.com.atproto.server.createAccount(
        { did, handle, password, email: `${account}@mail.test` },
        { headers: { authorization: `Bearer ${permit.token}` }, encoding: 'application/json' },
      )
      await arriving.login({ identifier: did, password })
      const { data: repository } = await leaving.com.atproto.sync.getRepo({ did })
      await arriving.com.atproto.repo.importRepo(repository, { encoding: 'application/vnd.ipld.car' })
      const { data: credentials } = await arriving.com.atproto.identity.getRecommendedDidCredentials()
      const token = await pds.ctx.accountManager.createEmailToken(did, 'plc_operation')
      const { data: signed } = await leaving.com.atproto.identity.signPlcOperation({ token, ...credentials })
      await arriving.com.atproto.identity.submitPlcOperation({ operation: signed.operation })
      await arriving.com.atproto.server.activateAccount()
      await leaving.com.atproto.server.deactivateAccount({})
      people[account].agent = arriving
      return { did, pds: other.url }
    },
  }
}
