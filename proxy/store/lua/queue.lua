-- The queue. All its steps are one script: this library, then those named queue_*, then the steps, of which STEP
-- names one. (A script for each would hold the library twenty times over in the store's Lua, whose
-- garbage collector then takes longer than the steps.)
-- KEYS[1] is the prefix of every key, with the hash tag that all of them share. Time is the store's, in ms.
--
--   job:<job>          hash: the post on its way; `open` counts its deliveries that are not terminal
--   d:<job>:<account>  hash: a delivery; its `state` is the truth, every set below follows it
--   over               hash: job -> what remains of it when all its deliveries are done or canceled, see queue_keep
--   posts              hash: <site>:<id> -> who the post is, see queue_keep; outlives the job as a tombstone
--   idem:<site>:<key>  hash: the answer to an idempotency key
--   account:<account>  hash: bell (the one stream entry), active delivery and its worker, gate, breaker; `held`
--                      while all that is ready waits for errands
--   backlog:<account>  zset: its ready deliveries by virtual start time, the urgent ones of which are URGENT less;
--                      lastscore:<account> hash by site, for urgent ones by !site
--   bells              stream, group `workers`: an entry says that an account has work
--   errands            as bells, for the lanes of errands, see queue_errand
--   chores             set: the errands that are live
--   live, delayed, dead, done, idem, gates, orphans, workers   zsets by an instant: when the delivery expires, is
--                      due, died; the job ended; the answer was made; the gate opens, the account nobody knew is
--                      tried again; the worker's last heartbeat
--   knows:<worker>     hash: account -> fingerprint of the credentials with which the worker serves it
--   requests, damaged  hashes: worker -> its last request that was given leases; account -> why it cannot be leased
--   jobs:<site>        zset: its jobs in order; site:<site> hash: how many wait; quota:<site> list
--   gone               zset: <site> <SHA-1 of a callback URL> by the instant at which it answered that it is gone
--   dead:<site>        zset: its dead letters by the instant at which they died
--   control            hash: paused (everything), paused_at_ms; mark: a word that is gone when the store was emptied,
--                      emptied_at_ms: when that was noticed
--   swept              where the sweep of `posts` goes on
--   move               hash: the move of this queue that is under way, see proxy/ops/move.py
--
-- An account has at most one entry in `bells`, from the ring until what was leased with it is settled: so
-- accounts take turns, and the posts of one go out one after the other.
local P = KEYS[1]
local time_now = redis.call('TIME')
local NOW = time_now[1] * 1000 + math.floor(time_now[2] / 1000)
-- While the queue is carried from one store to another, nothing happens in either.
if redis.call('EXISTS', P .. 'move') == 1 then
  return redis.error_reply('FROZEN the queue is being moved to another store, or from one: let `feedproxy move` finish')
end
local BELLS, ERRANDS, GROUP = P .. 'bells', P .. 'errands', 'workers'
local MAX_HISTORY, POISON_DELIVERIES = 10, 5
local HOUR_MS = 3600000
local ORPHAN_REST_MS, PASSED_REST_MS = 5000, 1000
-- So far the urgent stand before the others; so many of them go before one of the others does.
local URGENT, MAX_HURRIED = 1e9, 3
local ALL_PAUSED = redis.call('HGET', P .. 'control', 'paused')

local function account_key(account) return P .. 'account:' .. account end
local function backlog_key(account) return P .. 'backlog:' .. account end
local function delivery_key(id) return P .. 'd:' .. id end
local function job_key(job) return P .. 'job:' .. job end

-- At maxmemory Redis refuses what may grow, but only as the first write of a script: what ends a delivery
-- frees more than it takes and must never be refused.
local function allow_growth()
  redis.call('HDEL', P .. 'unlock', 'x')
end

-- A new post must be, also behind calls that were allowed to write. This changes nothing, and would be refused.
local refusal = STEP == 'queue_enqueue' and redis.pcall('LPUSHX', P .. 'unlock', 'x')
local function need_growth()
  if type(refusal) == 'table' and refusal.err then error(refusal) end
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

-- Lanes of errands are accounts in all but their name, which begins with a colon, and their stream.
local function is_lane(account) return string.byte(account) == 58 end
local function bells_of(account) return is_lane(account) and ERRANDS or BELLS end

local function is_closed(paused, until_ms)
  local instant = tonumber(until_ms or 0)
  return ALL_PAUSED or given(paused) or instant == -1 or instant > NOW
end

-- Say that the account has work, if it has, may, and was not said to have any.
local function ring(account)
  local key = account_key(account)
  local known = redis.call('HMGET', key, 'bell', 'paused', 'gate_until_ms', 'held')
  if known[4] then redis.call('HDEL', key, 'held') end
  if given(known[1]) or is_closed(known[2], known[3]) then return end
  if redis.call('EXISTS', backlog_key(account)) == 0 then return end
  redis.call('HSET', key, 'bell', redis.call('XADD', bells_of(account), '*', 'a', account))
end

local function remove_entry(account, entry)
  redis.call('XACK', bells_of(account), GROUP, entry)
  redis.call('XDEL', bells_of(account), entry)
end

-- The account has no bell and no active delivery any more.
local function silence(account)
  local key = account_key(account)
  local bell = redis.call('HGET', key, 'bell')
  if given(bell) then remove_entry(account, bell) end
  redis.call('HDEL', key, 'bell', 'active', 'worker')
end

-- What was leased is settled: the account goes to the end of the queue of accounts.
-- alive: the account's server has answered, which closes its breaker.
local function next_turn(account, alive)
  local key = account_key(account)
  local known = redis.call('HMGET', key, 'bell', 'paused', 'gate_until_ms', 'failures', 'broken')
  if given(known[1]) then remove_entry(account, known[1]) end
  if alive and (known[4] or known[5]) then redis.call('HDEL', key, 'failures', 'failed_job', 'several', 'broken') end
  if is_closed(known[2], known[3]) or redis.call('EXISTS', backlog_key(account)) == 0 then
    redis.call('HDEL', key, 'bell', 'active', 'worker')
  else
    redis.call('HSET', key, 'bell', redis.call('XADD', bells_of(account), '*', 'a', account), 'active', '', 'worker', '')
  end
end

-- Something left the backlog in another way than by a lease.
local function hush(account)
  if redis.call('EXISTS', backlog_key(account)) == 1 then
    -- It may be what the others waited behind.
    if redis.call('HGET', account_key(account), 'held') then ring(account) end
    return
  end
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
