-- The DID that an identifier of feedproxy.toml meant at its first login: a handle may change hands later.
-- KEYS[1]: prefix. ARGV: identifier, DID to pin if there is none yet ('' to only ask).
-- Returns the pinned DID, '' for none. May be sent twice.
if ARGV[2] ~= '' then
  redis.call('HSETNX', KEYS[1] .. 'pins', ARGV[1], ARGV[2])
end
return redis.call('HGET', KEYS[1] .. 'pins', ARGV[1]) or ''
