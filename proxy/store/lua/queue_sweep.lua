-- Forget what has been kept for long enough. ARGV: ms for finished jobs, jobs with dead letters, tombstones and
--   idempotency answers; how many of each at most. Returns how many went.
local done_ms, dead_ms, tomb_ms, idem_ms, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local count = 0
allow_growth()

-- Damage to one must not stop the others: it is looked at again in a day.
local function each_older(set, age_ms, visit)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', P .. set, '-inf', NOW - age_ms, 'LIMIT', 0, limit)) do
    count = count + 1
    if not pcall(visit, member) then redis.call('ZADD', P .. set, NOW - age_ms + DAY_MS, member) end
  end
end

-- Of the job remains the tombstone of its post.
local function bury(job)
  local fields, deliveries = unfolded(job)
  if not fields then
    fields, deliveries = hash_of(job_key(job), { payload = true }), {}
    for account in string.gmatch(fields.accounts or '', '[^,]+') do
      deliveries[#deliveries + 1] = { account = account, action = redis.call('HGET', delivery_key(job .. ':' .. account), 'action') }
    end
  end
  local deleted = false
  for _, delivery in ipairs(deliveries) do
    local id = job .. ':' .. delivery.account
    deleted = deleted or delivery.action == 'delete'
    redis.call('DEL', delivery_key(id))
    redis.call('ZREM', P .. 'dead', id)
    if fields.site then redis.call('ZREM', P .. 'dead:' .. fields.site, id) end
  end
  redis.call('DEL', job_key(job))
  redis.call('HDEL', P .. 'over', job)
  redis.call('ZREM', P .. 'done', job)
  if not fields.site then return end
  redis.call('ZREM', P .. 'jobs:' .. fields.site, job)
  drop_errand(errand_id('notify', job, fields.site))
  local newest = redis.call('LINDEX', P .. 'quota:' .. fields.site, 0)
  if newest and tonumber(newest) <= NOW - HOUR_MS then redis.call('DEL', P .. 'quota:' .. fields.site) end
  local name = fields.site .. ':' .. fields.post
  local who = who_is(name)
  if who and who.job == job then
    who.job, who.last, who.since = nil, nil, string.format('%.0f', math.floor(NOW / DAY_MS))
    who.state = deleted and 'unpublished' or fields.status or 'completed'
    remember(name, who)
  end
end

each_older('done', done_ms, bury)
each_older('dead', dead_ms, function(id)
  local job = job_and_account(id)
  redis.call('ZREM', P .. 'dead', id)
  local known = redis.call('HMGET', job_key(job), 'open', 'accounts')
  if tonumber(known[1] or 0) > 0 then
    -- Another account of it is still under way: look again later.
    redis.call('ZADD', P .. 'dead', NOW, id)
    return
  end
  for account in string.gmatch(known[2] or '', '[^,]+') do
    if redis.call('ZSCORE', P .. 'dead', job .. ':' .. account) then return end
  end
  bury(job)
end)
-- Another chance for who said that nobody wants to be told there.
each_older('gone', dead_ms, function(name) redis.call('ZREM', P .. 'gone', name) end)
each_older('idem', idem_ms, function(name)
  redis.call('DEL', P .. 'idem:' .. name)
  redis.call('ZREM', P .. 'idem', name)
end)
-- Tombstones are in no order of age: a part of all posts is looked through at a time.
local scanned = redis.call('HSCAN', P .. 'posts', redis.call('GET', P .. 'swept') or '0', 'COUNT', 5 * limit)
for i = 1, #scanned[2], 2 do
  local since = (who_is(scanned[2][i]) or {}).since
  if since and tonumber(since) * DAY_MS <= NOW - tomb_ms then
    redis.call('HDEL', P .. 'posts', scanned[2][i])
    count = count + 1
  end
end
redis.call('SET', P .. 'swept', scanned[1])
return count
