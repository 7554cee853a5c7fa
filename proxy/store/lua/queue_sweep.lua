-- Forget what has been kept for long enough. ARGV: ms for finished jobs, jobs with dead letters, tombstones and
--   idempotency answers; how many of each at most. Returns how many went.
local done_ms, dead_ms, tomb_ms, idem_ms, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local count = 0
allow_growth()

local function older(set, age_ms)
  return redis.call('ZRANGEBYSCORE', P .. set, '-inf', NOW - age_ms, 'LIMIT', 0, limit)
end

-- Of the job remains the tombstone of its post.
local function bury(job)
  local key = job_key(job)
  local known = redis.call('HMGET', key, 'accounts', 'site', 'post', 'status')
  redis.call('ZREM', P .. 'done', job)
  if not known[1] then return end
  local name, deleted = known[2] .. ':' .. known[3], false
  for account in string.gmatch(known[1], '[^,]+') do
    local id = job .. ':' .. account
    deleted = deleted or redis.call('HGET', delivery_key(id), 'action') == 'delete'
    redis.call('DEL', delivery_key(id))
    redis.call('ZREM', P .. 'dead', id)
  end
  redis.call('ZREM', P .. 'jobs:' .. known[2], job)
  if redis.call('HGET', P .. 'post:' .. name, 'job') == job then
    redis.call('HDEL', P .. 'post:' .. name, 'job', 'last')
    redis.call('HSET', P .. 'post:' .. name, 'state', deleted and 'unpublished' or known[4] or 'completed')
    redis.call('ZADD', P .. 'tombs', NOW, name)
  end
  redis.call('DEL', key)
end

for _, job in ipairs(older('done', done_ms)) do
  bury(job)
  count = count + 1
end
for _, id in ipairs(older('dead', dead_ms)) do
  local job = job_and_account(id)
  count = count + 1
  redis.call('ZREM', P .. 'dead', id)
  local known = redis.call('HMGET', job_key(job), 'open', 'accounts')
  local kept = tonumber(known[1] or 0) > 0
  for account in string.gmatch(known[2] or '', '[^,]+') do
    kept = kept or redis.call('ZSCORE', P .. 'dead', job .. ':' .. account)
  end
  if known[2] and tonumber(known[1] or 0) > 0 then
    -- Another account of it is still under way: look again later.
    redis.call('ZADD', P .. 'dead', NOW, id)
  elseif not kept then
    bury(job)
  end
end
for _, name in ipairs(older('tombs', tomb_ms)) do
  if not redis.call('HGET', P .. 'post:' .. name, 'job') then redis.call('DEL', P .. 'post:' .. name) end
  redis.call('ZREM', P .. 'tombs', name)
  count = count + 1
end
for _, name in ipairs(older('idem', idem_ms)) do
  redis.call('DEL', P .. 'idem:' .. name)
  redis.call('ZREM', P .. 'idem', name)
  count = count + 1
end
return count
