-- Open or close an account. ARGV: account, what (close, open, pause, resume), ms (-1: for good), reason.
-- Returns 1.
local account, what = ARGV[1], ARGV[2]
local key = account_key(account)
allow_growth()
if what == 'close' then
  local wait_ms = tonumber(ARGV[3])
  close_gate(account, wait_ms == -1 and -1 or NOW + wait_ms, ARGV[4])
elseif what == 'open' then
  redis.call('HDEL', key, 'refused', 'failures', 'failed_job', 'several', 'broken')
  open_gate(account)
elseif what == 'pause' then
  redis.call('HSET', key, 'paused', '1')
  if not given(redis.call('HGET', key, 'active')) then silence(account) end
elseif what == 'resume' then
  redis.call('HDEL', key, 'paused')
  ring(account)
end
return 1
