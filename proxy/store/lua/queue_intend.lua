-- Store what is about to be sent, before it is sent.
-- ARGV: delivery, token, edition of the payload it was made from, record, CID, record key, DID or "",
--   generation or "".
-- Returns ours; lost; or edited when the post was withdrawn since, or edited and nothing was sent yet: nothing is
-- stored then.
local id, token = ARGV[1], ARGV[2]
allow_growth()
local how, after = holding(id, token)
if how ~= 'ours' then return 'lost' end
local key = delivery_key(id)
local known = redis.call('HMGET', key, 'intent', 'sent')
if given(after) or (not given(known[1]) and redis.call('HGET', job_key(job_and_account(id)), 'edition') ~= ARGV[3]) then
  return 'edited'
end
redis.call('HSET', key, 'intent', ARGV[4], 'cid', ARGV[5], 'rkey', ARGV[6])
if ARGV[7] ~= '' then redis.call('HSET', key, 'did', ARGV[7]) end
if ARGV[8] ~= '' then redis.call('HSET', key, 'generation', ARGV[8]) end
if known[2] ~= token then
  redis.call('HSET', key, 'sent', token)
  redis.call('HINCRBY', key, 'attempts', 1)
end
return 'ours'
