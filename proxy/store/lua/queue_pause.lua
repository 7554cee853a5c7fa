-- Pause or resume everything. ARGV: 1 or 0. Returns 1. What rings already is silenced when it is read; after a
-- resume, queue_wake has to go through what waits.
allow_growth()
local control = P .. 'control'
if ARGV[1] == '1' then
  redis.call('HSET', control, 'paused', '1')
  redis.call('HSETNX', control, 'paused_at_ms', NOW)
else
  redis.call('HDEL', control, 'paused', 'paused_at_ms')
end
redis.call('HDEL', control, 'emptied_at_ms')
return 1
