-- Count what readers ask for. KEYS[1]: questions by how much they were asked for; KEYS[2]: there unless it is time to
-- halve that. ARGV: so many are kept, half-life in ms, question, count, ...
if redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[2]) then
  redis.call('ZUNIONSTORE', KEYS[1], 1, KEYS[1], 'WEIGHTS', '0.5')
end
for i = 3, #ARGV, 2 do
  redis.call('ZINCRBY', KEYS[1], ARGV[i + 1], ARGV[i])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[1])
redis.call('PEXPIRE', KEYS[1], 20 * ARGV[2])
return 1
