-- Library behind queue and queue_keep: the steps of a job's chain that are no deliveries, its errands. Each is as a
-- delivery to a lane of its site, and so are its lease, its fence and its retries; but it is in no job's `accounts`,
-- and when it is over its hash goes.
--
--   enrich   once a job, before its first delivery is handed out. The job says where that stands: `enrich` is wanted,
--            running (its deliveries keep their places and are not leased) or done, `enrichment` what came of it,
--            `unenriched` why nothing did.
--   notify   when a job is over. The job's `callback` is words: how many there were, what became of the last
--            (nothing yet, pending, retrying, delivered, failed, disabled), its attempts, when it was delivered or will
--            be tried again in ms, the last error. One that failed is kept, dead, for a person to retry.
local LANES = 4
local ENRICH_MS, NOTIFY_MS, LOST_REST_MS = 15000, 90000000, 60000
local make_ready -- of queue_deliver

local function errand_id(kind, job, site)
  return job .. '::' .. kind .. ':' .. site .. ':' .. string.byte(job, -1) % LANES
end

-- Whether the id is that of an errand, and of which kind.
local function errand_kind(id)
  return string.match(id, '^[^:]*::(%a+):')
end

-- `state`: ready, or dead when it is only to be kept.
local function add_errand(kind, job, site, format, state, fields)
  local id = errand_id(kind, job, site)
  local _, lane = job_and_account(id)
  local expires_ms = NOW + NOTIFY_MS
  -- An enrichment begins to count when a worker has it.
  if kind == 'enrich' then expires_ms = tonumber('1e15') end
  redis.call('HSET', delivery_key(id), 'format', format, 'state', state, 'job', job, 'account', lane, 'site', site,
    'expires_at_ms', string.format('%.0f', expires_ms), unpack(flat(fields)))
  if state == 'dead' then return end
  redis.call('ZADD', P .. 'live', expires_ms, id)
  redis.call('SADD', P .. 'chores', id)
  make_ready(id)
end

-- It is over, or not wanted any more.
local function drop_errand(id)
  local key = delivery_key(id)
  local _, lane = job_and_account(id)
  local state = redis.call('HGET', key, 'state')
  if not state then return end
  redis.call('DEL', key)
  redis.call('ZREM', P .. 'live', id)
  redis.call('SREM', P .. 'chores', id)
  redis.call('ZREM', P .. 'delayed', id)
  redis.call('ZREM', backlog_key(lane), id)
  if state == 'active' then next_turn(lane) elseif state ~= 'dead' then hush(lane) end
end

-- What is ready of the job may go out.
local function end_enriching(job, enrichment, reason)
  local key = job_key(job)
  local known = redis.call('HMGET', key, 'accounts', 'site')
  if not known[1] then return end
  drop_errand(errand_id('enrich', job, known[2]))
  redis.call('HSET', key, 'enrich', 'done', 'enrichment', enrichment, 'unenriched', reason)
  for account in string.gmatch(known[1], '[^,]+') do ring(account) end
  redis.call('PUBLISH', P .. 'news', job)
end

-- Nobody waits for it any more; should the job live again, it begins anew.
local function stop_enriching(job, site)
  if redis.call('HGET', job_key(job), 'enrich') ~= 'running' then return end
  drop_errand(errand_id('enrich', job, site))
  redis.call('HSET', job_key(job), 'enrich', 'wanted')
end

-- Whether the delivery, with those of its fields, has to wait for its job's enrichment; which is begun here.
local function is_held(job, site, action, cid)
  if action ~= 'post' or given(cid) then return false end
  local key = job_key(job)
  local known = redis.call('HMGET', key, 'enrich', 'format')
  if known[1] == 'wanted' then
    redis.call('HSET', key, 'enrich', 'running')
    add_errand('enrich', job, site, known[2], 'ready', {})
    return true
  end
  return known[1] == 'running'
end

local function callback_number(text)
  return tonumber(string.match(text or '', '^%d+') or 0)
end

local function callback_words(number, state, attempts, at_ms, reason)
  return string.format('%d %s %d %.0f %s', number, state, attempts, at_ms, string.sub(reason or '', 1, 120))
end

local function set_callback(job, words)
  revise(job, 'callback', words)
  redis.call('PUBLISH', P .. 'news', job)
end

local function gone_name(site, url)
  return site .. ' ' .. redis.sha1hex(url)
end

-- The job is over: whoever wants to know is told. Returns its `callback`, nil when there is none.
local function notify(job, site)
  local known = redis.call('HMGET', job_key(job), 'callback_url', 'callback', 'format')
  local url = known[1]
  if not given(url) then return nil end
  local number = callback_number(known[2]) + 1
  local gone = redis.call('ZSCORE', P .. 'gone', gone_name(site, url))
  add_errand('notify', job, site, known[3], gone and 'dead' or 'ready', { url = url, number = number })
  return callback_words(number, gone and 'disabled' or 'pending', 0, 0)
end

-- The job lives again: what was to be told of its end is overtaken.
local function overtake(job, site)
  local text = redis.call('HGET', job_key(job), 'callback')
  if not text then return end
  drop_errand(errand_id('notify', job, site))
  redis.call('HSET', job_key(job), 'callback', callback_number(text))
end

-- The notification has failed for good, as far as we can do something about it.
local function give_up_notifying(id, state, reason)
  local job, lane = job_and_account(id)
  local key = delivery_key(id)
  local known = redis.call('HMGET', key, 'number', 'attempts', 'state')
  redis.call('ZREM', P .. 'live', id)
  redis.call('SREM', P .. 'chores', id)
  redis.call('ZREM', P .. 'delayed', id)
  redis.call('ZREM', backlog_key(lane), id)
  redis.call('HDEL', key, 'token', 'worker', 'due_at_ms', 'waiting_for', 'deliveries')
  redis.call('HSET', key, 'state', 'dead')
  set_callback(job, callback_words(tonumber(known[1] or 0), state, tonumber(known[2] or 0), 0, reason))
  if known[3] == 'active' then next_turn(lane) else hush(lane) end
end

-- Several workers were lost over it.
local function postpone_notifying(id)
  local key = delivery_key(id)
  redis.call('HDEL', key, 'deliveries')
  local known = redis.call('HMGET', key, 'number', 'attempts')
  set_callback(job_and_account(id), callback_words(tonumber(known[1] or 0), 'retrying', tonumber(known[2] or 0),
    NOW + LOST_REST_MS, 'workers were lost over it'))
end

-- No worker has done it, or in time.
local function give_up(id, reason)
  if errand_kind(id) == 'enrich' then
    end_enriching(job_and_account(id), '', reason)
  else
    give_up_notifying(id, 'failed', reason)
  end
end
