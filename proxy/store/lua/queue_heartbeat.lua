-- A worker is alive. ARGV: worker, lease in ms.
-- Returns 1, or 0 when nobody knows it (any more): then it has to introduce itself, and has lost its leases.
allow_growth()
local seen = redis.call('ZSCORE', P .. 'workers', ARGV[1])
if not seen or tonumber(seen) < NOW - tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', P .. 'workers', NOW, ARGV[1])
return 1
