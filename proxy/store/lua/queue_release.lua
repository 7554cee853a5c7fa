-- A worker gives a delivery back to the front of its backlog, with no attempt used.
-- ARGV: delivery, token; for the next lease: worker ("" for none), its token, highest readable format, lease in ms;
--   ms for which the account has to wait (0: not at all), why; fingerprint of credentials that were refused, or "".
-- Returns { ours | again | lost, next lease or false }.
local id, token, wait_ms, refused = ARGV[1], ARGV[2], tonumber(ARGV[7]), ARGV[9]
allow_growth()
local how = holding(id, token)
if how == 'ours' then
  local _, account = job_and_account(id)
  local key, holder = delivery_key(id), account_key(account)
  local worker = redis.call('HGET', holder, 'worker')
  if redis.call('HGET', key, 'sent') == token then redis.call('HINCRBY', key, 'attempts', -1) end
  redis.call('HDEL', key, 'sent')
  redis.call('HSET', key, 'last', token)
  local restored = is_restored(id, token)
  if not restored then make_ready(id) end
  if wait_ms > 0 then close_gate(account, NOW + wait_ms, ARGV[8]) end
  if given(refused) then
    local list = redis.call('HGET', holder, 'refused')
    if not listed(list, refused) then
      list = given(list) and list .. ',' .. refused or refused
      redis.call('HSET', holder, 'refused', list)
    end
    if not restored then redis.call('HSET', key, 'error', ARGV[8]) end
    if not other_server(worker, account, list, tonumber(ARGV[6])) then close_gate(account, -1, 'credentials') end
  end
  next_turn(account)
  follow(job_and_account(id))
end
return settled(id, how, ARGV[3], ARGV[4], ARGV[5], ARGV[6])
