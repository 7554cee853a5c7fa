-- How the queue stands. ARGV: lease in ms, how long a post may wait in ms, accounts.
-- Returns JSON: numbers, and of each account that has something waiting or is closed what that is.
local lease_ms, max_age_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local HEADS, MOST, SAMPLE = 10, 100, 1000
local told = { ready = 0, active = 0, parked = 0, late_ms = 0, accounts = {} }

local function note_late(since_ms)
  if since_ms then told.late_ms = math.max(told.late_ms, NOW - since_ms) end
end

-- Since when it could have gone out: it expires so long after that.
local function note_waiting(id)
  local expires_ms = redis.call('ZSCORE', P .. 'live', id)
  note_late(expires_ms and tonumber(expires_ms) - max_age_ms)
end

local function look_at(account)
  local known = redis.call('HMGET', account_key(account), 'active', 'paused', 'gate_until_ms', 'gate_reason',
    'unknown_since_ms')
  local backlog = backlog_key(account)
  local waiting, active = redis.call('ZCARD', backlog), given(known[1])
  local closed = is_closed(known[2], known[3])
  told[closed and 'parked' or 'ready'] = told[closed and 'parked' or 'ready'] + waiting
  if active then told.active = told.active + 1 end
  if not closed then
    -- Sites take turns in a backlog, and the first of each is its oldest.
    for _, id in ipairs(redis.call('ZRANGE', backlog, 0, HEADS - 1)) do note_waiting(id) end
    if active then note_waiting(known[1]) end
  end
  if waiting > 0 or closed then
    local paused, until_ms = ALL_PAUSED or given(known[2]), tonumber(known[3] or 0)
    told.accounts[#told.accounts + 1] = {
      name = account, waiting = waiting,
      closed = closed and (paused and 'paused' or known[4] or 'closed') or '',
      opens_in_ms = closed and not paused and until_ms ~= -1 and until_ms - NOW or -1,
      unknown_ms = given(known[5]) and waiting > 0 and NOW - tonumber(known[5]) or 0,
    }
  end
end

local seen = {}
local function look_at_all(accounts)
  for _, account in ipairs(accounts) do
    if not seen[account] then
      seen[account] = true
      look_at(account)
    end
  end
end

local own = {}
for i = 3, #ARGV do own[#own + 1] = ARGV[i] end
look_at_all(own)
-- Those that only others know.
for _, set in ipairs({ 'orphans', 'gates' }) do look_at_all(redis.call('ZRANGE', P .. set, 0, MOST - 1)) end

-- Errands are told apart. Of very many, how many are delayed is an estimate.
local function delayed_errands()
  local sample, delayed = redis.call('SRANDMEMBER', P .. 'chores', SAMPLE), 0
  for _, id in ipairs(sample) do
    if redis.call('ZSCORE', P .. 'delayed', id) then delayed = delayed + 1 end
  end
  return #sample < SAMPLE and delayed or math.floor(delayed / SAMPLE * told.errands)
end

told.errands = redis.call('SCARD', P .. 'chores')
told.delayed = redis.call('ZCARD', P .. 'delayed') - delayed_errands()
local first = redis.call('ZRANGE', P .. 'delayed', 0, 0, 'WITHSCORES')
note_late(tonumber(first[2]))
-- What is left is of accounts that only others know, and is not closed.
local live = redis.call('ZCARD', P .. 'live') - told.errands
told.ready = math.max(told.ready, live - told.delayed - told.active - told.parked)
told.dead = redis.call('ZCARD', P .. 'dead')
told.dead_lately = redis.call('ZCOUNT', P .. 'dead', NOW - HOUR_MS, '+inf')
told.done = redis.call('ZCARD', P .. 'done')
told.workers = redis.call('ZCOUNT', P .. 'workers', NOW - lease_ms, '+inf')
return cjson.encode(told)
