-- The stored answer KEYS[1], with the store's own time: { microseconds since 1970, field, value, ... }.
-- One round trip, and no host's clock has a say in how old the answer is.
local time = redis.call('TIME')
local answer = redis.call('HGETALL', KEYS[1])
table.insert(answer, 1, time[1] * 1000000 + time[2])
return answer
