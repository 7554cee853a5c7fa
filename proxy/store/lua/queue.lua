-- Library of all scripts of the queue; they stand behind it in one text.
-- KEYS[1] is the prefix of every key, with the hash tag that all of them share. Time is the store's, in ms.
--
--   job:<job>          hash: the post on its way; `open` counts its deliveries that are not terminal
--   d:<job>:<account>  hash: a delivery; its `state` is the truth, every set below follows it
--   post:<site>:<id>   hash: who the post is; outlives the job as a tombstone
--   idem:<site>:<key>  hash: the answer to an idempotency key
--   account:<account>  hash: bell (the one stream entry), active delivery and its worker, gate, breaker
--   backlog:<account>  zset: its ready deliveries by virtual start time; lastscore:<account> hash by site
--   bells              stream, group `workers`: an entry says that an account has work
--   live, delayed, dead, done, tombs, idem, gates, orphans, workers   zsets by an instant: when the delivery
--                      expires, is due, died; the job ended; the tombstone and the answer were made; the gate
--                      opens, the account nobody knew is tried again; the worker's last heartbeat
--   knows:<worker>     hash: account -> fingerprint of the credentials with which the worker serves it
--   requests, damaged  hashes: worker -> its last request that was given leases; account -> why it cannot be leased
--   jobs:<site>        zset: its jobs in order; site:<site> hash: how many wait; quota:<site> list
--
-- An account has at most one entry in `bells`, from the ring until what was leased with it is settled: so
-- accounts take turns, and the posts of one go out one after the other.
local P = KEYS[1]
local time_now = redis.call('TIME')
local NOW = time_now[1] * 1000 + math.floor(time_now[2] / 1000)
local BELLS, GROUP = P .. 'bells', 'workers'
local MAX_HISTORY, POISON_DELIVERIES = 10, 5
local ORPHAN_REST_MS, PASSED_REST_MS = 5000, 1000

local function account_key(account) return P .. 'account:' .. account end
local function backlog_key(account) return P .. 'backlog:' .. account end
local function delivery_key(id) return P .. 'd:' .. id end
local function job_key(job) return P .. 'job:' .. job end

-- At maxmemory Redis refuses what may grow, but only as the first write of a script: what ends a delivery
-- frees more than it takes and must never be refused.
local function allow_growth()
  redis.call('HDEL', P .. 'unlock', 'x')
end

local function job_and_account(id)
  local colon = string.find(id, ':', 1, true)
  return string.sub(id, 1, colon - 1), string.sub(id, colon + 1)
end

local function given(value)
  return value and value ~= ''
end

local function listed(list, item)
  return given(list) and string.find(',' .. list .. ',', ',' .. item .. ',', 1, true) ~= nil
end

local function is_closed(paused, until_ms)
  local instant = tonumber(until_ms or 0)
  return given(paused) or instant == -1 or instant > NOW
end

-- Say that the account has work, if it has, may, and was not said to have any.
local function ring(account)
  local key = account_key(account)
  local known = redis.call('HMGET', key, 'bell', 'paused', 'gate_until_ms')
  if given(known[1]) or is_closed(known[2], known[3]) then return end
  if redis.call('EXISTS', backlog_key(account)) == 0 then return end
  redis.call('HSET', key, 'bell', redis.call('XADD', BELLS, '*', 'a', account))
end

local function remove_entry(entry)
  redis.call('XACK', BELLS, GROUP, entry)
  redis.call('XDEL', BELLS, entry)
end

-- The account has no bell and no active delivery any more.
local function silence(account)
  local key = account_key(account)
  local bell = redis.call('HGET', key, 'bell')
  if given(bell) then remove_entry(bell) end
  redis.call('HDEL', key, 'bell', 'active', 'worker')
end

-- What was leased is settled: the account goes to the end of the queue of accounts.
-- alive: the account's server has answered, which closes its breaker.
local function next_turn(account, alive)
  local key = account_key(account)
  local known = redis.call('HMGET', key, 'bell', 'paused', 'gate_until_ms')
  if given(known[1]) then remove_entry(known[1]) end
  if alive then
    redis.call('HDEL', key, 'bell', 'active', 'worker', 'failures', 'failed_job', 'several', 'broken')
  else
    redis.call('HDEL', key, 'bell', 'active', 'worker')
  end
  if is_closed(known[2], known[3]) or redis.call('EXISTS', backlog_key(account)) == 0 then return end
  redis.call('HSET', key, 'bell', redis.call('XADD', BELLS, '*', 'a', account))
end

-- Something left the backlog in another way than by a lease.
local function hush(account)
  if redis.call('EXISTS', backlog_key(account)) == 1 then return end
  if not given(redis.call('HGET', account_key(account), 'active')) then silence(account) end
end

local function close_gate(account, until_ms, reason)
  local key = account_key(account)
  local present = tonumber(redis.call('HGET', key, 'gate_until_ms') or 0)
  if present == -1 or (until_ms ~= -1 and present >= until_ms) then return end
  redis.call('HSET', key, 'gate_until_ms', until_ms, 'gate_reason', reason)
  if until_ms == -1 then
    redis.call('ZREM', P .. 'gates', account)
  else
    redis.call('ZADD', P .. 'gates', until_ms, account)
  end
  if not given(redis.call('HGET', key, 'active')) then silence(account) end
end

local function open_gate(account)
  redis.call('HDEL', account_key(account), 'gate_until_ms', 'gate_reason')
  redis.call('ZREM', P .. 'gates', account)
  redis.call('ZREM', P .. 'orphans', account)
  ring(account)
end

-- The account's circuit breaker; its oracle is proxy/resilience/account_breaker.py. It closes in next_turn.
local function count_failure(account, job, used_up, threshold, cooldown_ms)
  local key = account_key(account)
  local known = redis.call('HMGET', key, 'failures', 'failed_job', 'several', 'broken')
  local failures = tonumber(known[1] or 0) + 1
  local several = given(known[3]) or (given(known[2]) and known[2] ~= job)
  redis.call('HSET', key, 'failures', failures, 'failed_job', job, 'several', several and '1' or '')
  if given(known[4]) or (failures >= threshold and (several or used_up)) then
    redis.call('HSET', key, 'broken', '1')
    close_gate(account, NOW + cooldown_ms, 'breaker')
  end
end

local SHOWN = { ready = 'pending', active = 'pending', delayed = 'pending', done = 'completed', dead = 'failed',
  canceled = 'canceled' }

-- Twin of job_status in proxy/syndication/job.py.
local function job_status(job, accounts)
  local kinds, count = {}, 0
  for account in string.gmatch(accounts, '[^,]+') do
    local known = redis.call('HMGET', delivery_key(job .. ':' .. account), 'state', 'failures')
    local shown = SHOWN[known[1] or 'canceled'] or 'pending'
    if shown == 'pending' and tonumber(known[2] or 0) > 0 then shown = 'retrying' end
    if not kinds[shown] then count = count + 1 end
    kinds[shown] = true
  end
  if kinds.retrying then return 'retrying' end
  if kinds.pending then return 'pending' end
  if count == 1 then return next(kinds) end
  return kinds.completed and 'partial' or 'failed'
end

local function has_dead(job, accounts)
  for account in string.gmatch(accounts, '[^,]+') do
    if redis.call('HGET', delivery_key(job .. ':' .. account), 'state') == 'dead' then return true end
  end
  return false
end

-- The job follows its deliveries; whoever waits for it is told.
local function follow(job)
  local key = job_key(job)
  local known = redis.call('HMGET', key, 'accounts', 'status')
  if not known[1] then return end
  local status = job_status(job, known[1])
  if status ~= known[2] then redis.call('HSET', key, 'status', status) end
  redis.call('PUBLISH', P .. 'news', job)
end

-- A terminal delivery is live again.
local function reopen(id)
  local job = job_and_account(id)
  local key = job_key(job)
  redis.call('ZREM', P .. 'dead', id)
  redis.call('ZREM', P .. 'done', job)
  if redis.call('HINCRBY', key, 'open', 1) == 1 then
    redis.call('HDEL', key, 'finished_at_ms')
    redis.call('HINCRBY', P .. 'site:' .. redis.call('HGET', key, 'site'), 'waiting', 1)
  end
end

-- Of what is over remain few and short fields, so that it is stored compactly: written anew, since a hash that
-- once held a long value stays large. A URI that follows from DID and record key is not stored.
local function compact(key, ...)
  local of_the_living = { token = true, worker = true, due_at_ms = true, waiting_for = true, deliveries = true,
    intent = true, sent = true, history = true, error = true, after = true, score = true, fence = true, urgent = true,
    expires_at_ms = true, payload = true }
  local flat, fields, kept = redis.call('HGETALL', key), {}, {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  local changes = { ... }
  for i = 1, #changes, 2 do fields[changes[i]] = changes[i + 1] end
  if given(fields.did) and given(fields.rkey)
    and fields.uri == 'at://' .. fields.did .. '/app.bsky.feed.post/' .. fields.rkey then fields.uri = nil end
  for name, value in pairs(fields) do
    if value ~= '' and value ~= '[]' and not of_the_living[name] then
      kept[#kept + 1] = name
      kept[#kept + 1] = value
    end
  end
  redis.call('DEL', key)
  redis.call('HSET', key, unpack(kept))
end

-- The delivery is done, dead or canceled. What only the living need goes first, which frees memory. Further
-- fields and values are set with the state.
local function finish_delivery(id, state, ...)
  local job, key = job_and_account(id), delivery_key(id)
  if state == 'dead' then
    redis.call('HDEL', key, 'token', 'worker', 'due_at_ms', 'waiting_for', 'deliveries')
    redis.call('ZADD', P .. 'dead', NOW, id)
    redis.call('HSET', key, 'state', state, ...)
  else
    compact(key, 'state', state, ...)
  end
  redis.call('ZREM', P .. 'live', id)
  local job_hash = job_key(job)
  local known = redis.call('HMGET', job_hash, 'site', 'accounts', 'open')
  if not known[3] then return end
  local status, open = job_status(job, known[2]), tonumber(known[3]) - 1
  if open > 0 then
    redis.call('HSET', job_hash, 'open', open, 'status', status)
  else
    redis.call('HINCRBY', P .. 'site:' .. known[1], 'waiting', -1)
    -- What has failed may be tried again, and needs its payload for that.
    if status == 'completed' or status == 'canceled' or not has_dead(job, known[2]) then
      compact(job_hash, 'open', 0, 'status', status, 'finished_at_ms', NOW)
      redis.call('ZADD', P .. 'done', NOW, job)
    else
      redis.call('HSET', job_hash, 'open', 0, 'status', status, 'finished_at_ms', NOW)
    end
  end
  redis.call('PUBLISH', P .. 'news', job)
end

local function add_history(key, reason)
  local text = redis.call('HGET', key, 'history')
  local history = given(text) and cjson.decode(text) or {}
  history[#history + 1] = { NOW, reason }
  while #history > MAX_HISTORY do table.remove(history, 1) end
  redis.call('HSET', key, 'history', cjson.encode(history), 'error', reason)
end

local function kill(id, reason)
  local _, account = job_and_account(id)
  redis.call('ZREM', backlog_key(account), id)
  redis.call('ZREM', P .. 'delayed', id)
  add_history(delivery_key(id), reason)
  finish_delivery(id, 'dead')
  hush(account)
end

-- Into the backlog of its account. The first time it gets its place there: start-time fair queueing over the
-- sites, so that a site with thousands of posts goes in turns with one that has one.
local function make_ready(id)
  local _, account = job_and_account(id)
  local key = delivery_key(id)
  local known = redis.call('HMGET', key, 'score', 'site', 'urgent')
  local score = tonumber(known[1])
  if not score then
    local last = P .. 'lastscore:' .. account
    local virtual = tonumber(redis.call('HGET', account_key(account), 'vtime') or 0)
    score = math.max(virtual, tonumber(redis.call('HGET', last, known[2]) or 0)) + 1
    redis.call('HSET', last, known[2], score)
    if given(known[3]) then score = score - 1e9 end
  end
  redis.call('HDEL', key, 'token', 'worker', 'due_at_ms', 'waiting_for')
  redis.call('HSET', key, 'state', 'ready', 'score', score)
  redis.call('ZREM', P .. 'delayed', id)
  redis.call('ZADD', backlog_key(account), score, id)
  ring(account)
end

local function make_delayed(id, due_at_ms, reason)
  local _, account = job_and_account(id)
  redis.call('ZREM', backlog_key(account), id)
  redis.call('HDEL', delivery_key(id), 'token', 'worker')
  redis.call('HSET', delivery_key(id), 'state', 'delayed', 'due_at_ms', due_at_ms, 'waiting_for', reason)
  redis.call('ZADD', P .. 'delayed', due_at_ms, id)
  hush(account)
end

-- The worker of an active delivery is gone without having settled it.
local function give_back(id, counts)
  local key = delivery_key(id)
  if counts and redis.call('HINCRBY', key, 'deliveries', 1) >= POISON_DELIVERIES then
    kill(id, 'poison: ' .. POISON_DELIVERIES .. ' workers in a row were lost over it')
  else
    make_ready(id)
  end
end

-- When a post of the site may go out that would go out now: at most per_hour in any hour.
local function paced(site, per_hour)
  local key = P .. 'quota:' .. site
  local due = NOW
  if redis.call('LLEN', key) >= per_hour then
    due = math.max(NOW, tonumber(redis.call('LINDEX', key, per_hour - 1)) + 3600000)
  end
  redis.call('LPUSH', key, due)
  redis.call('LTRIM', key, 0, per_hour - 1)
  return due
end

-- Whether the caller's token still holds the delivery: ours; again (this very step was made before); lost.
local function holding(id, token, step)
  local known = redis.call('HMGET', delivery_key(id), 'state', 'token', 'last', 'after')
  if known[1] == 'active' and known[2] == token then return 'ours', known[4] end
  return known[3] == step .. ':' .. token and 'again' or 'lost'
end

-- The job as JSON, without payload and intents: { job = {}, deliveries = { {} }, gates = { account = {} } }.
local function view(job)
  local function hash(key, skip)
    local flat, fields = redis.call('HGETALL', key), {}
    for i = 1, #flat, 2 do
      if not skip[flat[i]] then fields[flat[i]] = flat[i + 1] end
    end
    return fields
  end
  local shown = { job = hash(job_key(job), { payload = true }), deliveries = {}, gates = {} }
  if not shown.job.id then return nil end
  for account in string.gmatch(shown.job.accounts, '[^,]+') do
    local id = job .. ':' .. account
    shown.deliveries[#shown.deliveries + 1] = hash(delivery_key(id), { intent = true, token = true, last = true })
    local known = redis.call('HMGET', account_key(account), 'paused', 'gate_until_ms', 'gate_reason')
    if is_closed(known[1], known[2]) then
      local paused = given(known[1])
      shown.gates[account] = { paused and '-1' or known[2], paused and 'paused' or known[3] or '' }
    end
  end
  return cjson.encode(shown)
end
