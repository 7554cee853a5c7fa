-- Look for the answer KEYS[1]; where there is none, for leave to ask the upstream for it (KEYS[2], its flight).
-- ARGV: stamp of a copy that does not count ('' if every copy does, '*' if none does), token of who wants to lead ('' to look
-- only), lease in ms, memory of a flight in ms, the purge that leaders must have known.
-- Returns { now in us, what, ... }: 'entry' and its fields and values; 'failing', us left, the error; 'alone';
-- 'led' by another, us left; 'none'; 'lead'.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if ARGV[1] ~= '*' and redis.call('TYPE', KEYS[1]).ok == 'hash'
  and (ARGV[1] == '' or redis.call('HGET', KEYS[1], 'stamp') ~= ARGV[1]) then
  local answer = redis.call('HGETALL', KEYS[1])
  table.insert(answer, 1, 'entry')
  table.insert(answer, 1, now)
  return answer
end
local flight = redis.call('HMGET', KEYS[2], 'failing_until_at', 'error', 'alone_until_at', 'leased_until_at', 'as_of')
if flight[1] and tonumber(flight[1]) > now then
  return { now, 'failing', flight[1] - now, flight[2] }
end
if flight[3] and tonumber(flight[3]) > now then
  return { now, 'alone' }
end
-- More time left than a lease ever has: the clock was set back.
local left = flight[4] and flight[4] - now or 0
if left > 0 and left <= ARGV[3] * 1000 and tonumber(flight[5]) >= tonumber(ARGV[5]) then
  return { now, 'led', left }
end
if ARGV[2] == '' then
  return { now, 'none' }
end
redis.call('HSET', KEYS[2], 'token', ARGV[2], 'leased_until_at', string.format('%.0f', now + ARGV[3] * 1000), 'as_of', ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return { now, 'lead' }
