-- A person wants the login of an account tried again. KEYS[1]: prefix. ARGV: DID. Returns 1.
redis.call('HDEL', KEYS[1] .. 'sessions:' .. ARGV[1], 'refused', 'login_after', 'logins_failed')
return 1
