-- A call has ended, or somebody waits no more. ARGV: longest refusal in us, id, how many at a time, channel.
-- Tells the next one if there was no slot free. Returns the mirror.
local was_full = redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3])
forget(ARGV[2])
forget_the_silent()
if was_full then
  call_next(ARGV[4])
end
return mirror()
