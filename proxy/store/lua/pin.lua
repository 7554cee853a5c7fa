-- Who an identifier of feedproxy.toml is: the DID that it meant at its first login, since a handle may change hands
-- later; before that, the one that it led to when it was last resolved.
-- KEYS[1]: prefix. ARGV: identifier, DID to note ('' to only ask), 'pins' (if none is pinned yet) or 'resolved'.
-- Returns { pinned DID, resolved DID }, '' for none. May be sent twice.
if ARGV[2] ~= '' then
  redis.call(ARGV[3] == 'pins' and 'HSETNX' or 'HSET', KEYS[1] .. ARGV[3], ARGV[1], ARGV[2])
end
local pinned = redis.call('HGET', KEYS[1] .. 'pins', ARGV[1])
if pinned then
  redis.call('HDEL', KEYS[1] .. 'resolved', ARGV[1])
end
return { pinned or '', redis.call('HGET', KEYS[1] .. 'resolved', ARGV[1]) or '' }
