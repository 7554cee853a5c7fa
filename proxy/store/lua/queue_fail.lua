-- An attempt was refused for good: nothing of it was done to the account, and the server is alive.
-- ARGV: delivery, token; for the next lease: worker ("" for none), its token, highest readable format, lease in ms;
--   reason.
-- Returns { ours | again | lost, next lease or false }.
local id, token = ARGV[1], ARGV[2]
allow_growth()
local how, after = holding(id, token)
if how == 'ours' then
  local _, account = job_and_account(id)
  local key = delivery_key(id)
  if after == 'cancel' or after == 'delete' then
    -- It was withdrawn, and now it is known that nothing of it is there.
    finish_delivery(id, 'canceled', { last = token })
  elseif not is_restored(id, token) then
    redis.call('HDEL', key, 'intent', 'sent')
    -- What a deletion leaves is there as it was published, or tells by this that it was changed since.
    if redis.call('HGET', key, 'action') ~= 'delete' then redis.call('HDEL', key, 'cid') end
    redis.call('HSET', key, 'last', token)
    redis.call('HINCRBY', key, 'failures', 1)
    kill(id, ARGV[7])
  end
  next_turn(account, true)
end
return settled(id, how, ARGV[3], ARGV[4], ARGV[5], ARGV[6])
