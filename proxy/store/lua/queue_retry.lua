-- An attempt failed, another may succeed.
-- ARGV: delivery, token; for the next lease: worker ("" for none), its token, highest readable format, lease in ms;
--   reason, delay in ms before the next attempt (-1: none is left), sign for the breaker (failed or nothing),
--   its threshold, its cooldown in ms.
-- Returns { ours | again | lost, next lease or false }.
local id, token, delay_ms = ARGV[1], ARGV[2], tonumber(ARGV[8])
allow_growth()
local how = holding(id, token)
if how == 'ours' then
  local job, account = job_and_account(id)
  local key = delivery_key(id)
  redis.call('HDEL', key, 'deliveries')
  redis.call('HSET', key, 'last', token)
  redis.call('HINCRBY', key, 'failures', 1)
  if ARGV[9] == 'failed' then count_failure(account, job, delay_ms < 0, tonumber(ARGV[10]), tonumber(ARGV[11])) end
  local restored = is_restored(id, token)
  if delay_ms < 0 and not restored then
    kill(id, ARGV[7])
  elseif not restored then
    add_history(key, ARGV[7])
    make_delayed(id, NOW + delay_ms, 'retry')
    follow(job)
  end
  next_turn(account)
end
return settled(id, how, ARGV[3], ARGV[4], ARGV[5], ARGV[6])
