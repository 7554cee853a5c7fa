-- An attempt to tell of a job's end has ended.
-- ARGV: errand, token; for the next lease: worker ("" for none), its token, highest readable format, lease in ms;
--   delivered, retrying, failed, or disabled (nobody wants to be told there any more); the reason; ms before the next
--   attempt.
-- Returns { ours | again | lost, next lease or false }.
local id, token, outcome = ARGV[1], ARGV[2], ARGV[7]
allow_growth()
local how = holding(id, token)
if how == 'ours' then
  local job, lane = job_and_account(id)
  local key = delivery_key(id)
  local attempts = redis.call('HINCRBY', key, 'attempts', 1)
  local known = redis.call('HMGET', key, 'number', 'site', 'url')
  local number = tonumber(known[1])
  if outcome == 'delivered' then
    redis.call('HSET', account_key(lane), 'last', token)
    drop_errand(id)
    set_callback(job, callback_words(number, outcome, attempts, NOW))
  else
    redis.call('HSET', key, 'last', token)
    redis.call('HINCRBY', key, 'failures', 1)
    if outcome == 'retrying' then
      local due_ms = NOW + tonumber(ARGV[9])
      redis.call('HDEL', key, 'deliveries')
      set_callback(job, callback_words(number, outcome, attempts, due_ms, ARGV[8]))
      make_delayed(id, due_ms, 'retry')
      next_turn(lane)
    else
      if outcome == 'disabled' then redis.call('ZADD', P .. 'gone', NOW, gone_name(known[2], known[3])) end
      give_up_notifying(id, outcome, ARGV[8])
    end
  end
end
return settled(id, how, ARGV[3], ARGV[4], ARGV[5], ARGV[6])
