-- An attempt to enrich a job has ended.
-- ARGV: errand, token; for the next lease: worker ("" for none), its token, highest readable format, lease in ms;
--   what came of it, as the job keeps it ("": nothing), why nothing did; ms before the next attempt (-1: none is left).
-- Returns { ours | again | lost, next lease or false }.
local id, token, delay_ms = ARGV[1], ARGV[2], tonumber(ARGV[9])
allow_growth()
local how = holding(id, token)
if how == 'ours' then
  local job, lane = job_and_account(id)
  local key = delivery_key(id)
  if ARGV[7] == '' and delay_ms >= 0 then
    redis.call('HDEL', key, 'deliveries')
    redis.call('HSET', key, 'last', token)
    redis.call('HINCRBY', key, 'failures', 1)
    make_delayed(id, NOW + delay_ms, 'retry')
    next_turn(lane)
  else
    redis.call('HSET', account_key(lane), 'last', token)
    end_enriching(job, ARGV[7], ARGV[8])
  end
end
return settled(id, how, ARGV[3], ARGV[4], ARGV[5], ARGV[6])
