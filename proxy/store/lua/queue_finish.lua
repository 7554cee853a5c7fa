-- A delivery's record is on its account.
-- ARGV: delivery, token; for the next lease: worker ("" for none), its token, highest readable format, lease in ms;
--   URI, CID, what it went without (JSON).
-- Returns { ours | again | lost, next lease or false }.
local id, token = ARGV[1], ARGV[2]
local how, after = holding(id, token)
if how == 'ours' then
  local job, account = job_and_account(id)
  local key = delivery_key(id)
  if after == 'delete' then
    -- Unpublished while it was being sent: now that it is there, it goes.
    redis.call('HDEL', key, 'intent', 'sent', 'after', 'error', 'failures', 'attempts')
    redis.call('HSET', key, 'action', after, 'last', token, 'uri', ARGV[7], 'cid', ARGV[8])
    make_ready(id)
    follow(job)
  else
    finish_delivery(id, 'done', { last = token, uri = ARGV[7], cid = ARGV[8], degraded = ARGV[9] })
  end
  next_turn(account, true)
end
return settled(id, how, ARGV[3], ARGV[4], ARGV[5], ARGV[6])
