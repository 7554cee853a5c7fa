-- Remember for ARGV[1] ms that an answer has handed out the cursor KEYS[1].
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
return 1
