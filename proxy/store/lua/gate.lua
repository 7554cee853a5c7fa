-- The fleet's gate before the upstream: proxy/resilience/limiter.py and breaker.py, decided by the store's clock.
-- KEYS: 1 the gate (a hash: bucket, breaker, not before); 2 slots (who is calling, by when it must say so again);
-- 3, 4, 5 who waits as refresh, miss, doubtful, in their order; 6 by when who waits must have asked again; 7 the
-- last round of each client, among misses and among the doubtful.

-- It is small and does not grow, so it is kept where memory is full: a script that has written is not refused for lack
-- of it. (Nothing here expires.)
redis.call('PERSIST', KEYS[1])

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function text(number)
  return string.format('%.0f', number)
end

local function field(name)
  return tonumber(redis.call('HGET', KEYS[1], name) or 0)
end

-- Until when something holds, given for how long it can hold at most: else the clock was set back.
local function left(name, longest)
  return math.max(0, math.min(field(name) - now, longest))
end

-- What processes remember of the gate: phase, failures, us for which callers are refused, number of the probe, us
-- until anybody may call. ARGV[1] of every script: for how long, in us, callers are refused at most.
local function mirror(...)
  local phase = redis.call('HGET', KEYS[1], 'phase') or 'closed'
  return { phase, field('failures'), text(left('refuse_until_at', tonumber(ARGV[1]))), field('probe'),
    text(left('not_before_at', 86400000000)), ... }
end

local function forget(id)
  for i = 2, 6 do
    redis.call('ZREM', KEYS[i], id)
  end
end

-- Who does not ask again in time has died, or left without a word.
local function forget_the_silent()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', text(now))) do
    forget(id)
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now))
end

local function counts()
  return redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]), redis.call('ZCARD', KEYS[5])
end

local function refresh_was_last()
  return redis.call('HGET', KEYS[1], 'last') == '0'
end

-- There is a free slot: have the next one ask again, if anybody waits.
local function call_next(channel)
  local refreshes, misses, doubtful = counts()
  if refreshes + misses + doubtful == 0 then
    return
  end
  local rank = 2
  if refreshes > 0 and (misses == 0 or not refresh_was_last()) then
    rank = 0
  elseif misses > 0 then
    rank = 1
  end
  redis.call('PUBLISH', channel, '1 turn ' .. redis.call('ZRANGE', KEYS[3 + rank], 0, 0)[1])
end
