-- Library behind queue, queue_keep and queue_errand: deliveries from state to state, and the job that follows them.

local SHOWN = { ready = 'pending', active = 'pending', delayed = 'pending', done = 'completed', dead = 'failed',
  canceled = 'canceled' }

-- Twin of job_status in proxy/syndication/job.py, and whether a delivery is dead. `id`, if given, is about to be `state`.
local function job_status(job, accounts, id, state)
  local kinds, count = {}, 0
  for account in string.gmatch(accounts, '[^,]+') do
    local shown
    if job .. ':' .. account == id then
      shown = SHOWN[state]
    else
      local known = redis.call('HMGET', delivery_key(job .. ':' .. account), 'state', 'failures')
      shown = SHOWN[known[1] or 'canceled'] or 'pending'
      if shown == 'pending' and tonumber(known[2] or 0) > 0 then shown = 'retrying' end
    end
    if not kinds[shown] then count = count + 1 end
    kinds[shown] = true
  end
  if kinds.retrying then return 'retrying' end
  if kinds.pending then return 'pending' end
  if count == 1 then return next(kinds), kinds.failed end
  return kinds.completed and 'partial' or 'failed', kinds.failed
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

local function add_dead(id)
  redis.call('ZADD', P .. 'dead', NOW, id)
  redis.call('ZADD', P .. 'dead:' .. redis.call('HGET', delivery_key(id), 'site'), NOW, id)
end

local function remove_dead(id, site)
  redis.call('ZREM', P .. 'dead', id)
  redis.call('ZREM', P .. 'dead:' .. site, id)
end

-- A terminal delivery is live again.
local function reopen(id)
  local job = job_and_account(id)
  local key = job_key(job)
  local site = redis.call('HGET', key, 'site')
  remove_dead(id, site)
  redis.call('ZREM', P .. 'done', job)
  if redis.call('HINCRBY', key, 'open', 1) == 1 then
    redis.call('HDEL', key, 'finished_at_ms')
    redis.call('HINCRBY', P .. 'site:' .. site, 'waiting', 1)
    overtake(job, site)
  end
end

-- The delivery is done, dead or canceled; `changes` are set with its state.
local function finish_delivery(id, state, changes)
  local job, key = job_and_account(id), delivery_key(id)
  changes = changes or {}
  changes.state = state
  -- First what frees memory: see allow_growth.
  redis.call('ZREM', P .. 'live', id)
  if state == 'dead' then add_dead(id) end
  local job_hash = job_key(job)
  local known = redis.call('HMGET', job_hash, 'open', 'accounts', 'enrich', 'callback_url', unpack(JOB_FIELDS))
  local open = tonumber(known[1] or 0) - 1
  local status, failed
  if known[1] then status, failed = job_status(job, known[2], id, state) end
  local callback
  if open == 0 then
    if known[3] == 'running' then stop_enriching(job, known[JOB_SITE]) end
    if given(known[4]) then callback = notify(job, known[JOB_SITE]) end
  end
  if open == 0 and not failed then
    -- Only now is the payload not needed any more: what has failed may be tried again.
    changes.status, changes.finished_at_ms, changes.callback = status, string.format('%.0f', NOW), callback
    fold(job, known, id, changes)
  else
    redis.call('HDEL', key, 'token', 'worker', 'due_at_ms', 'waiting_for', 'deliveries')
    if state ~= 'dead' then redis.call('HDEL', key, 'intent', 'sent', 'history', 'error', 'after') end
    redis.call('HSET', key, unpack(flat(changes)))
    if not known[1] then return end
    redis.call('HSET', job_hash, 'open', open, 'status', status)
    if open == 0 then redis.call('HSET', job_hash, 'finished_at_ms', NOW) end
    if callback then redis.call('HSET', job_hash, 'callback', callback) end
  end
  if open == 0 then redis.call('HINCRBY', P .. 'site:' .. known[JOB_SITE], 'waiting', -1) end
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
  if errand_kind(id) then
    give_up(id, reason)
    return
  end
  local _, account = job_and_account(id)
  redis.call('ZREM', backlog_key(account), id)
  redis.call('ZREM', P .. 'delayed', id)
  add_history(delivery_key(id), reason)
  finish_delivery(id, 'dead')
  hush(account)
end

-- Into the backlog of its account. The first time it gets its place there: start-time fair queueing over the
-- sites, so that a site with thousands of posts goes in turns with one that has one; urgent posts among themselves.
function make_ready(id)
  local job, account = job_and_account(id)
  local key = delivery_key(id)
  local known = redis.call('HMGET', key, 'score', 'site', 'urgent', 'action', 'cid')
  local score = tonumber(known[1])
  if not score then
    local last, urgent = P .. 'lastscore:' .. account, given(known[3])
    local flow = urgent and '!' .. known[2] or known[2]
    local virtual = tonumber(redis.call('HGET', account_key(account), urgent and 'urgent_vtime' or 'vtime') or 0)
    score = math.max(virtual, tonumber(redis.call('HGET', last, flow) or 0)) + 1
    redis.call('HSET', last, flow, score)
    if urgent then score = score - URGENT end
  end
  redis.call('HDEL', key, 'token', 'worker', 'due_at_ms', 'waiting_for')
  redis.call('HSET', key, 'state', 'ready', 'score', score)
  redis.call('ZREM', P .. 'delayed', id)
  redis.call('ZADD', backlog_key(account), score, id)
  if not is_lane(account) and is_held(job, known[2], known[4], known[5]) then
    if not given(redis.call('HGET', account_key(account), 'bell')) then redis.call('HSET', account_key(account), 'held', '1') end
  else
    ring(account)
  end
end

local function make_delayed(id, due_at_ms, reason)
  local _, account = job_and_account(id)
  redis.call('ZREM', backlog_key(account), id)
  redis.call('HDEL', delivery_key(id), 'token', 'worker')
  redis.call('HSET', delivery_key(id), 'state', 'delayed', 'due_at_ms', due_at_ms, 'waiting_for', reason)
  redis.call('ZADD', P .. 'delayed', due_at_ms, id)
  hush(account)
end

-- The post of an active deletion was published again meanwhile: the record that was not deleted stays.
local function is_restored(id, token)
  if redis.call('HGET', delivery_key(id), 'after') ~= 'keep' then return false end
  finish_delivery(id, 'done', { action = 'post', last = token })
  return true
end

-- The worker of an active delivery is gone without having settled it.
local function give_back(id, counts)
  local key = delivery_key(id)
  if is_restored(id) then return end
  local lost = counts and redis.call('HINCRBY', key, 'deliveries', 1) or 0
  if lost >= POISON_DELIVERIES and errand_kind(id) == 'notify' then
    -- It is told all the same, but it does not take one worker after the other with it.
    postpone_notifying(id)
    make_delayed(id, NOW + LOST_REST_MS, 'retry')
  elseif lost >= POISON_DELIVERIES then
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
    due = math.max(NOW, tonumber(redis.call('LINDEX', key, per_hour - 1)) + HOUR_MS)
  end
  redis.call('LPUSH', key, due)
  redis.call('LTRIM', key, 0, per_hour - 1)
  -- What lies more than an hour back holds up nothing: two go for each that comes.
  for _ = 1, 2 do
    if tonumber(redis.call('LINDEX', key, -1)) <= NOW - HOUR_MS then redis.call('RPOP', key) end
  end
  return due
end

-- Whether the caller's token still holds the delivery: ours; again (it has been settled with it before); lost.
local function holding(id, token)
  local known = redis.call('HMGET', delivery_key(id), 'state', 'token', 'last', 'after')
  if known[1] == 'active' and known[2] == token then return 'ours', known[4] end
  local last = known[3]
  if not known[1] then
    local _, account = job_and_account(id)
    last = is_lane(account) and redis.call('HGET', account_key(account), 'last') or folded_last(id)
  end
  return last == token and 'again' or 'lost'
end

-- The job as JSON, without payload and intents: { job = {}, deliveries = { {} }, gates = { account = {} } }.
local function view(job)
  local shown = { job = hash_of(job_key(job), { payload = true, enrichment = true }), deliveries = {}, gates = {} }
  if shown.job.callback_url then shown.job.callback_url = '1' end
  if shown.job.id then
    for account in string.gmatch(shown.job.accounts, '[^,]+') do
      local delivery = hash_of(delivery_key(job .. ':' .. account), { intent = true, token = true, last = true })
      shown.deliveries[#shown.deliveries + 1] = delivery
    end
  else
    shown.job, shown.deliveries = unfolded(job)
    if not shown.job then return nil end
  end
  for account in string.gmatch(shown.job.accounts or '', '[^,]+') do
    local known = redis.call('HMGET', account_key(account), 'paused', 'gate_until_ms', 'gate_reason')
    if is_closed(known[1], known[2]) then
      local paused = ALL_PAUSED or given(known[1])
      shown.gates[account] = { paused and '-1' or known[2], paused and 'paused' or known[3] or '' }
    end
  end
  return cjson.encode(shown)
end
