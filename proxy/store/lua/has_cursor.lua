-- Whether an answer that is stored has handed out the cursor KEYS[1].
return redis.call('EXISTS', KEYS[1])
