-- Prove that each live delivery is in exactly one place and each account with work has its bell; repair what is
-- not so. ARGV: cursor ("0" to begin), about how many to look at, lease in ms.
-- Returns { next cursor ("0": all were seen), sentence on each repair, ... }.
local repairs, accounts = {}, {}
allow_growth()

local function repaired(what, id)
  repairs[#repairs + 1] = what .. ' ' .. id
end

local function is_delivered(account, entry)
  return #redis.call('XPENDING', bells_of(account), GROUP, entry, entry, 1) > 0
end

local function after(one, other)
  local ms, n = string.match(one, '(%d+)-(%d+)')
  local other_ms, other_n = string.match(other, '(%d+)-(%d+)')
  return tonumber(ms) > tonumber(other_ms) or (ms == other_ms and tonumber(n) > tonumber(other_n))
end

ensure_group()
local last_delivered = {}
for _, stream in ipairs({ BELLS, ERRANDS }) do
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local info = {}
    for i = 1, #flat, 2 do info[flat[i]] = flat[i + 1] end
    if info.name == GROUP then last_delivered[stream] = info['last-delivered-id'] end
  end
end

-- Whether the lease that an active delivery speaks of is there from all sides.
local function is_leased(id, account, worker)
  local known = redis.call('HMGET', account_key(account), 'active', 'worker', 'bell')
  if known[1] ~= id or known[2] ~= worker or not given(known[3]) then return false end
  local seen = redis.call('ZSCORE', P .. 'workers', worker or '')
  if seen and tonumber(seen) >= NOW - tonumber(ARGV[3]) then return true end
  -- A dead worker's entry is the reaper's part, unless the group was made anew and another got the entry.
  return #redis.call('XPENDING', bells_of(account), GROUP, known[3], known[3], 1, worker or '') > 0
end

-- Backlogs and accounts follow from the deliveries: what is of another kind goes, and they are made anew.
local function clear_foreign(account)
  for key, kind in pairs({ [backlog_key(account)] = 'zset', [account_key(account)] = 'hash' }) do
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then
      redis.call('DEL', key)
      repaired('a foreign value was in the way of', account)
    end
  end
end

-- What is left of a delivery that cannot be read: a failure that people see and can retry.
local function write_off(id, job, account)
  redis.call('ZREM', P .. 'live', id)
  redis.call('SREM', P .. 'chores', id)
  redis.call('ZREM', P .. 'delayed', id)
  redis.call('ZREM', backlog_key(account), id)
  redis.call('DEL', delivery_key(id))
  local site = redis.call('HGET', job_key(job), 'site')
  local kind = errand_kind(id)
  if kind == 'enrich' then
    end_enriching(job, '', 'damaged')
  elseif kind then
    local shown = site and hash_of(job_key(job), { payload = true }) or unfolded(job) or {}
    set_callback(job, callback_words(callback_number(shown.callback), 'failed', 0, 0, 'damaged'))
  elseif site then
    redis.call('HSET', delivery_key(id), 'format', 1, 'job', job, 'account', account, 'site', site, 'state', 'ready')
    kill(id, 'damaged: what was stored of it could not be read')
  end
  repaired('gone', id)
end

local function check_delivery(id)
  local job, account = job_and_account(id)
  if not accounts[account] then clear_foreign(account) end
  accounts[account] = true
  local known = redis.pcall('HMGET', delivery_key(id), 'state', 'worker', 'due_at_ms', 'site')
  local state, backlog = not known.err and known[1], backlog_key(account)
  if not state or (errand_kind(id) ~= 'notify' and redis.call('EXISTS', job_key(job)) == 0) then
    write_off(id, job, account)
    return
  end
  if state == 'ready' then
    if redis.call('ZREM', P .. 'delayed', id) == 1 then repaired('ready and delayed', id) end
    if not redis.call('ZSCORE', backlog, id) then
      make_ready(id)
      repaired('not in the backlog', id)
    end
    if not is_lane(account) and redis.call('HGET', job_key(job), 'enrich') == 'running'
      and redis.call('EXISTS', delivery_key(errand_id('enrich', job, known[4]))) == 0 then
      end_enriching(job, '', 'lost')
      repaired('waits for nothing', id)
    end
  elseif state == 'delayed' then
    if redis.call('ZREM', backlog, id) == 1 then repaired('delayed and in the backlog', id) end
    if not redis.call('ZSCORE', P .. 'delayed', id) then
      redis.call('ZADD', P .. 'delayed', tonumber(known[3] or NOW), id)
      repaired('not in the delayed set', id)
    end
  elseif state == 'active' then
    if redis.call('ZREM', backlog, id) == 1 then repaired('active and in the backlog', id) end
    if redis.call('ZREM', P .. 'delayed', id) == 1 then repaired('active and delayed', id) end
    if not is_leased(id, account, known[2]) then
      give_back(id, false)
      if redis.call('HGET', account_key(account), 'active') == id then next_turn(account) end
      repaired('leased by nobody', id)
    end
  else
    redis.call('ZREM', P .. 'live', id)
    redis.call('SREM', P .. 'chores', id)
    repaired('not live', id)
  end
end

local function check_account(account)
  local key = account_key(account)
  local known = redis.call('HMGET', key, 'bell', 'active', 'paused', 'gate_until_ms', 'held')
  if given(known[2]) and redis.call('HGET', delivery_key(known[2]), 'state') ~= 'active' then
    next_turn(account)
    repaired('holds what is not active', account)
    return
  end
  if given(known[1]) then
    local stream = bells_of(account)
    local exists = #redis.call('XRANGE', stream, known[1], known[1]) > 0
    if not exists or (not is_delivered(account, known[1]) and not after(known[1], last_delivered[stream])) then
      next_turn(account)
      repaired('has lost its bell', account)
    elseif not ALL_PAUSED and not given(known[2]) and is_closed(known[3], known[4]) then
      silence(account)
      repaired('rings behind a closed gate', account)
    end
  elseif is_closed(known[3], known[4]) then
    local until_ms = tonumber(known[4] or 0)
    if until_ms > NOW and not redis.call('ZSCORE', P .. 'gates', account) then
      redis.call('ZADD', P .. 'gates', until_ms, account)
      repaired('has a gate that would never open', account)
    end
  elseif redis.call('EXISTS', backlog_key(account)) == 1 and not redis.call('ZSCORE', P .. 'orphans', account)
    and not redis.call('ZSCORE', P .. 'gates', account) and not (given(known[5]) and not head(account, 1e9)) then
    if redis.call('EXISTS', backlog_key(account)) == 1 then
      ring(account)
      repaired('has work and no bell', account)
    end
  end
end

local scanned = redis.call('ZSCAN', P .. 'live', ARGV[1], 'COUNT', ARGV[2])
for i = 1, #scanned[2], 2 do
  local id = scanned[2][i]
  if not pcall(check_delivery, id) then repaired('unreadable', id) end
end
for account in pairs(accounts) do
  if not pcall(check_account, account) then repaired('unreadable', account) end
end
return { scanned[1], unpack(repairs) }
