-- Callers are still at it. ARGV: longest refusal in us, us until they must say so again, id, ... Returns the mirror.
for i = 3, #ARGV do
  redis.call('ZADD', KEYS[2], 'XX', text(now + ARGV[2]), ARGV[i])
end
return mirror()
