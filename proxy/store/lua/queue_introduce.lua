-- A worker says that it is there and what it can serve.
-- ARGV: worker, account, fingerprint of its credentials, ...
-- Returns 1. Gates that wait for other credentials open for those that were not refused yet.
allow_growth()
ensure_group()
local worker = ARGV[1]
local knows = P .. 'knows:' .. worker
redis.call('ZADD', P .. 'workers', NOW, worker)
redis.call('DEL', knows)
for i = 2, #ARGV, 2 do
  local account, fingerprint = ARGV[i], ARGV[i + 1]
  redis.call('HSET', knows, account, fingerprint)
  local known = redis.call('HMGET', account_key(account), 'gate_reason', 'refused')
  if known[1] == 'credentials' and not listed(known[2], fingerprint) then
    open_gate(account)
  elseif redis.call('ZREM', P .. 'orphans', account) == 1 then
    ring(account)
  end
end
return 1
