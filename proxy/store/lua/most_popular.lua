-- The ARGV[1] questions KEYS[1] that were asked for most, the first first.
return redis.call('ZREVRANGE', KEYS[1], 0, ARGV[1] - 1)
