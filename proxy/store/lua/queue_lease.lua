-- Library behind queue_deliver: handing deliveries to workers.

-- Can the worker serve the account: does it know it, with credentials that were not refused?
local function can_serve(worker, account, refused)
  if is_lane(account) then return true end
  local fingerprint = redis.call('HGET', P .. 'knows:' .. worker, account)
  return fingerprint and not listed(refused, fingerprint)
end

local function other_server(worker, account, refused, lease_ms)
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', NOW - lease_ms, '+inf')) do
    if other ~= worker and can_serve(other, account, refused) then return true end
  end
  return false
end

-- This worker cannot serve the account: leave it to the others, or let it rest when nobody can.
local function pass_on(worker, account, lease_ms)
  local key = account_key(account)
  local known = redis.call('HMGET', key, 'refused', 'tried')
  silence(account)
  if not other_server(worker, account, known[1], lease_ms) then
    if given(known[1]) and redis.call('HEXISTS', P .. 'knows:' .. worker, account) == 1 then
      close_gate(account, -1, 'credentials')
    else
      redis.call('HSETNX', key, 'unknown_since_ms', NOW)
      redis.call('ZADD', P .. 'orphans', NOW + ORPHAN_REST_MS, account)
    end
  elseif listed(known[2], worker) then
    -- The others are busy: come back in a while instead of going round between those who cannot.
    redis.call('ZADD', P .. 'orphans', NOW + PASSED_REST_MS, account)
  else
    redis.call('HSET', key, 'tried', given(known[2]) and known[2] .. ',' .. worker or worker)
    ring(account)
  end
end

-- The first of the backlog from that rank on that can be worked on, with its fence and its job's hash; else nil, and why:
-- 'strangers' when some are of newer formats, 'held' when they wait for errands, behind which a site's later posts wait as
-- well.
local function first_from(account, rank, format)
  local backlog, passed, why, waiting = backlog_key(account), 0, nil, {}
  while passed < 100 do
    local id = redis.call('ZRANGE', backlog, rank + passed, rank + passed)[1]
    if not id then return nil, why end
    local job = job_and_account(id)
    local known = redis.pcall('HMGET', delivery_key(id), 'format', 'state', 'expires_at_ms', 'fence', 'score', 'site',
      'action', 'cid')
    if known.err or known[2] ~= 'ready' then
      redis.call('ZREM', backlog, id)
    elseif tonumber(known[1] or 0) > format then
      passed, why = passed + 1, 'strangers'
    elseif tonumber(known[3] or 0) <= NOW then
      kill(id, 'expired')
    elseif not is_lane(account) and (waiting[known[6]] or is_held(job, known[6], known[7], known[8])) then
      waiting[known[6]] = true
      passed, why = passed + 1, why or 'held'
    else
      local fields = redis.pcall('HGETALL', job_key(job))
      if not fields.err and (#fields > 0 or is_lane(account)) then
        return id, tonumber(known[4] or 0), tonumber(known[5] or 0), fields
      end
      redis.call('ZREM', backlog, id)
    end
  end
  return nil, why
end

-- What is next, as first_from has it: of the others, when so many urgent ones went before them.
local function head(account, format, hurried)
  if tonumber(hurried or 0) >= MAX_HURRIED then
    local id, fence, score, job = first_from(account, redis.call('ZCOUNT', backlog_key(account), '-inf', '(0'), format)
    if id then return id, fence, score, job end
  end
  return first_from(account, 0, format)
end

-- What the account remembers of a delivery with that score going out. `vtime` and `urgent_vtime`: as it has them.
local function note_turn(account, id, worker, score, hurried, vtime, urgent_vtime)
  local key, clock, virtual, known = account_key(account), 'vtime', score, vtime
  if score < 0 then clock, virtual, known = 'urgent_vtime', score + URGENT, urgent_vtime end
  redis.call('HSET', key, 'active', id, 'worker', worker, clock, math.max(tonumber(known or 0), virtual))
  if score < 0 and redis.call('ZCOUNT', backlog_key(account), 0, '+inf') > 0 then
    redis.call('HINCRBY', key, 'hurried', 1)
  elseif hurried then
    redis.call('HDEL', key, 'hurried')
  end
end

local function handed_over(id, job)
  return { id, redis.call('HGETALL', delivery_key(id)), job or redis.call('HGETALL', job_key(job_and_account(id))) }
end

-- What the worker gets for a bell that was delivered to it: a delivery, or nil.
local function lease(entry, account, worker, token, format, lease_ms)
  local key = account_key(account)
  local known = redis.call('HMGET', key, 'bell', 'active', 'paused', 'gate_until_ms', 'refused', 'tried',
    'hurried', 'unknown_since_ms', 'vtime', 'urgent_vtime')
  if known[1] ~= entry then
    remove_entry(account, entry)
    return nil
  end
  if given(known[2]) then return nil end
  if not can_serve(worker, account, known[5]) then
    pass_on(worker, account, lease_ms)
    return nil
  end
  if is_closed(known[3], known[4]) then
    silence(account)
    return nil
  end
  local id, fence, score, job = head(account, format, known[7])
  if not id then
    silence(account)
    -- `fence` says why.
    if fence == 'strangers' then redis.call('ZADD', P .. 'orphans', NOW + PASSED_REST_MS, account) end
    if fence == 'held' then redis.call('HSET', key, 'held', '1') end
    return nil
  end
  redis.call('ZREM', backlog_key(account), id)
  redis.call('HSET', delivery_key(id), 'state', 'active', 'token', token, 'worker', worker, 'fence', fence + 1)
  note_turn(account, id, worker, score, known[7], known[9], known[10])
  if fence == 0 and errand_kind(id) == 'enrich' then
    redis.call('HSET', delivery_key(id), 'expires_at_ms', string.format('%.0f', NOW + ENRICH_MS))
    redis.call('ZADD', P .. 'live', NOW + ENRICH_MS, id)
  end
  if known[6] or known[8] then redis.call('HDEL', key, 'tried', 'unknown_since_ms') end
  return handed_over(id, job)
end

-- As lease; but one damaged account must not keep the worker from all the others: it rests.
local function lease_safely(entry, account, worker, token, format, lease_ms)
  local fine, leased = pcall(lease, entry, account, worker, token, format, lease_ms)
  if fine then return leased end
  remove_entry(account, entry)
  redis.pcall('HDEL', account_key(account), 'bell', 'active', 'worker')
  redis.call('ZADD', P .. 'orphans', NOW + 12 * ORPHAN_REST_MS, account)
  redis.call('HSET', P .. 'damaged', account, type(leased) == 'table' and leased.err or tostring(leased))
  return nil
end

local function ensure_group()
  redis.pcall('XGROUP', 'CREATE', BELLS, GROUP, '0', 'MKSTREAM')
  redis.pcall('XGROUP', 'CREATE', ERRANDS, GROUP, '0', 'MKSTREAM')
end

-- Up to count bells of the stream for the worker, from `from` on: '>' the next, '0' its own pending ones.
local function read_bells(stream, worker, count, from)
  local function read()
    return redis.pcall('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', count, 'STREAMS', stream, from)
  end
  local answer = read()
  if answer and answer.err then
    ensure_group()
    answer = read()
  end
  return answer and not answer.err and answer[1] and answer[1][2] or {}
end

-- The delivery that the worker holds by this bell, and its token; nil if it holds none by it.
local function held(worker, bell)
  if not bell[2] then return nil end
  local known = redis.call('HMGET', account_key(bell[2][2]), 'bell', 'active', 'worker')
  if known[1] == bell[1] and given(known[2]) and known[3] == worker then
    return known[2], redis.call('HGET', delivery_key(known[2]), 'token') or ''
  end
end

-- Who has settled one and wants another, by stream, then by worker: tables of answer, token, format and lease_ms, apart
-- by whether it is settled now or was before.
local wanting = { [BELLS] = {}, [ERRANDS] = {} }

-- The next of the stream for those of a worker, as far as there are any.
local function hand_out(stream, worker, wants)
  if #wants == 0 or not redis.call('ZSCORE', P .. 'workers', worker) then return end
  for _ = 1, 3 do
    local bells, unserved = read_bells(stream, worker, #wants, '>'), {}
    for number, bell in ipairs(bells) do
      local want = wants[number]
      local leased = lease_safely(bell[1], bell[2][2], worker, want.token, want.format, want.lease_ms)
      if leased then want.answer[2] = leased else unserved[#unserved + 1] = want end
    end
    if #unserved == 0 then return end
    wants = unserved
  end
end

-- For those of a worker what they were given before, as long as it has not settled that.
local function hand_out_again(stream, worker, wants)
  if #wants == 0 then return end
  local ids = {}
  for _, bell in ipairs(read_bells(stream, worker, 1000, '0')) do
    local id, token = held(worker, bell)
    if id then ids[token] = id end
  end
  for _, want in ipairs(wants) do
    if ids[want.token] then want.answer[2] = handed_over(ids[want.token]) end
  end
end

-- When all that comes together is settled: one look into a stream is as dear as many leases. What is settled stays so,
-- whatever is in the way of the next.
at_end = function()
  for stream, workers in pairs(wanting) do
    for worker, wants in pairs(workers) do
      pcall(hand_out, stream, worker, wants.ours)
      pcall(hand_out_again, stream, worker, wants.again)
    end
  end
end

-- What a step that settles a delivery returns: { ours | again | lost, the next delivery or false }; '' as worker: it
-- wants none. Made again, it hands out the same delivery again.
local function settled(settled_id, how, worker, token, format, lease_ms)
  local _, account = job_and_account(settled_id)
  local workers, answer = wanting[bells_of(account)], { how, false }
  if how ~= 'lost' and given(worker) then
    local wants = workers[worker] or { ours = {}, again = {} }
    workers[worker] = wants
    local list = wants[how]
    list[#list + 1] = { answer = answer, token = token, format = tonumber(format), lease_ms = tonumber(lease_ms) }
  end
  return answer
end
