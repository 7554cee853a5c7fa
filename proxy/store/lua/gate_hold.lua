-- The upstream wants nobody to call for a while; the longest such wish holds. ARGV: longest refusal in us, us, channel.
-- Returns the mirror.
if tonumber(ARGV[2]) > left('not_before_at', 86400000000) then
  redis.call('HSET', KEYS[1], 'not_before_at', text(now + ARGV[2]))
  redis.call('PUBLISH', ARGV[3], '1 gate')
end
return mirror()
