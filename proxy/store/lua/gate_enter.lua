-- Ask for a turn, or ask again. ARGV: longest refusal in us, id, rank (0, 1, 2), client, us until its turn must have
-- come, '1' if it is the breaker's probe, requests a second, burst, how many at a time, us until it must say again that
-- it calls, us for which it waits for an upstream that asked to be left alone, us of grace for who asks again,
-- channel, the place it had (or ''), how many turns its client may have in a minute (0: it does not pay).
-- KEYS[8]: when the client had turns that it paid for, the oldest first.
-- Returns the mirror and 'go'; 'wait', us, its place; 'breaker'; 'told'; 'budget', us; or 'share', us until it is worth
-- asking again.
local id, rank, client, latest = ARGV[2], tonumber(ARGV[3]), ARGV[3] .. ' ' .. ARGV[4], tonumber(ARGV[5])
local per_us, burst, concurrency, lease = ARGV[7] / 1000000, tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
forget_the_silent()
redis.call('ZREMRANGEBYSCORE', KEYS[2], '(' .. text(now + 2 * lease), '+inf')

if ARGV[6] ~= '1' and (redis.call('HGET', KEYS[1], 'phase') or 'closed') ~= 'closed' then
  forget(id)
  return mirror('breaker')
end
local held = left('not_before_at', 86400000000)
if held > tonumber(ARGV[11]) or held > latest then
  forget(id)
  return mirror('told')
end

local share = tonumber(ARGV[15])
if share > 0 then
  -- As proxy/resilience/shares.py. What is from the future is from before the clock was set back.
  local oldest = tonumber(redis.call('LINDEX', KEYS[8], 0))
  while oldest and (oldest <= now - 60000000 or oldest > now) do
    redis.call('LPOP', KEYS[8])
    oldest = tonumber(redis.call('LINDEX', KEYS[8], 0))
  end
  if redis.call('LLEN', KEYS[8]) >= share then
    forget(id)
    return mirror('share', text(redis.call('LINDEX', KEYS[8], -share) + 60000000 - now))
  end
end

local stored = redis.call('HMGET', KEYS[1], 'tokens', 'refilled_at')
local tokens = burst
if stored[1] then
  tokens = math.min(burst, stored[1] + math.max(0, now - stored[2]) * per_us)
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', tokens), 'refilled_at', text(now))

local queue = KEYS[3 + rank]
local score = redis.call('ZSCORE', queue, id)
local round = nil
if not score and ARGV[14] ~= '' then
  score = ARGV[14]
  redis.call('ZADD', queue, score, id)
elseif not score then
  local number = redis.call('HINCRBY', KEYS[1], 'number', 1)
  score = number
  if rank > 0 then
    -- Misses go in rounds, in each of which every client has one turn; the doubtful likewise.
    round = math.max(field('round' .. rank), tonumber(redis.call('HGET', KEYS[7], client) or 0)) + 1
    if redis.call('HLEN', KEYS[7]) > 10000 then
      redis.call('DEL', KEYS[7])
    end
    redis.call('HSET', KEYS[7], client, text(round))
    score = round + (number % 1000000) / 1000001
  end
  score = string.format('%.17g', score)
  redis.call('ZADD', queue, score, id)
end

local refreshes, misses, doubtful = counts()
local place = redis.call('ZRANK', queue, id)
local ahead = place + refreshes + misses
if rank == 0 then
  ahead = place + math.min(misses, place + (refresh_was_last() and 1 or 0))
elseif rank == 1 then
  ahead = place + math.min(refreshes, place + (refresh_was_last() and 0 or 1))
end

local free = concurrency - redis.call('ZCARD', KEYS[2])
if held <= 0 and tokens >= ahead + 1 and free >= ahead + 1 then
  forget(id)
  redis.call('ZADD', KEYS[2], text(now + lease), id)
  redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', tokens - 1), 'last', rank)
  if rank > 0 then
    redis.call('HSET', KEYS[1], 'round' .. rank, text(math.floor(score)))
    if misses + doubtful == 1 then
      redis.call('DEL', KEYS[7])
    end
  end
  if share > 0 then
    redis.call('RPUSH', KEYS[8], text(now))
    redis.call('PEXPIRE', KEYS[8], 60000)
  end
  if free > 1 and tokens >= 2 then
    call_next(ARGV[13])
  end
  return mirror('go')
end

local wait = math.max(held, math.ceil((ahead + 1 - tokens) / per_us))
if wait > latest or latest <= 0 then
  forget(id)
  -- Who asks for more than its share before it can have that is refused for its own sake: what it has spent, what
  -- waits, and what was refused behind that.
  local asked = round and round - field('round' .. rank) or 0
  local too_much = share > 0 and redis.call('LLEN', KEYS[8]) + asked > share
  if round and (too_much or asked == 1 or share == 0) then
    redis.call('HSET', KEYS[7], client, text(round - 1))  -- what was refused took no turn
  end
  return too_much and mirror('share', text(wait - latest)) or mirror('budget', text(wait))
end
if free < ahead + 1 then
  -- Who leaves will call the next one; this is for when that is lost.
  wait = math.max(wait, math.min(1000000 * (1 + math.floor(ahead / concurrency)), latest))
end
wait = math.max(wait, 1000)
redis.call('ZADD', KEYS[6], text(now + wait + ARGV[12]), id)
return mirror('wait', text(wait), score)
