-- The shared session of an account. KEYS[1]: prefix. ARGV: DID.
-- Returns { version, sealed tokens }, both empty where there is none.
local stored = redis.call('HMGET', KEYS[1] .. 'sessions:' .. ARGV[1], 'version', 'sealed')
return { stored[1] or '', stored[2] or '' }
