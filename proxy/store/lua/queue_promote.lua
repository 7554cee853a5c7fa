-- What is due: deliveries, gates, accounts that nobody knew, and what has waited for too long.
-- ARGV: how many of each at most. Returns { how many, ms until the next is due (-1: nothing is delayed) }.
local limit, count = tonumber(ARGV[1]), 0
allow_growth()

local function due_of(set)
  return redis.call('ZRANGEBYSCORE', P .. set, '-inf', NOW, 'LIMIT', 0, limit)
end

-- A scheduled post meets the site's quota when it comes, not a year before; all its accounts at once.
local function paced_until(id, site)
  local key = job_key(job_and_account(id))
  local at = redis.call('HGET', key, 'paced_ms')
  if not at then
    at = paced(site, tonumber(redis.call('HGET', P .. 'site:' .. site, 'per_hour') or 60))
    redis.call('HSET', key, 'paced_ms', at)
  end
  return tonumber(at)
end

local function promote(id)
  local known = redis.call('HMGET', delivery_key(id), 'state', 'waiting_for', 'site')
  if known[1] ~= 'delayed' then
    redis.call('ZREM', P .. 'delayed', id)
    return
  end
  local until_ms = known[2] == 'schedule' and paced_until(id, known[3]) or NOW
  if until_ms <= NOW then
    make_ready(id)
    return
  end
  local expires_ms = redis.call('HINCRBY', delivery_key(id), 'expires_at_ms', until_ms - NOW)
  redis.call('ZADD', P .. 'live', expires_ms, id)
  make_delayed(id, until_ms, 'quota')
end

-- Damage to one must not stop the others: it is looked at again in a minute.
local function each(set, visit)
  for _, member in ipairs(due_of(set)) do
    count = count + 1
    if not pcall(visit, member) then redis.call('ZADD', P .. set, NOW + 60000, member) end
  end
end

each('delayed', promote)
each('gates', open_gate)
each('orphans', function(account)
  redis.call('ZREM', P .. 'orphans', account)
  ring(account)
end)
each('live', function(id)
  local state = redis.call('HGET', delivery_key(id), 'state')
  if state == 'ready' or state == 'delayed' then
    kill(id, errand_kind(id) == 'enrich' and 'not found out in time' or 'expired')
  elseif state == 'active' and errand_kind(id) == 'enrich' then
    -- The deliveries go on without it, and without waiting for its worker.
    kill(id, 'not found out in time')
  elseif state == 'active' then
    redis.call('ZADD', P .. 'live', NOW + 60000, id)
  else
    redis.call('ZREM', P .. 'live', id)
    redis.call('SREM', P .. 'chores', id)
  end
end)

local soonest = -1
for _, set in ipairs({ 'delayed', 'gates', 'orphans' }) do
  local first = redis.call('ZRANGE', P .. set, 0, 0, 'WITHSCORES')
  if first[2] then
    local wait_ms = math.max(0, tonumber(first[2]) - NOW)
    if soonest < 0 or wait_ms < soonest then soonest = wait_ms end
  end
end
return { count, soonest }
