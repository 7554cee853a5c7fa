-- Take back what dead workers held. ARGV: lease in ms, how many at most, a worker that leaves of its own (or "").
-- Returns the deliveries that were taken back. A delivery that workers died over five times in a row is dead.
local lease_ms, limit, leaver = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
allow_growth()
local taken = {}
-- A heartbeat from the future is of a clock that went back since: it counts from now, and not for hours.
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '(' .. string.format('%.0f', NOW), '+inf')) do
  redis.call('ZADD', P .. 'workers', NOW, worker)
end

local function take_back(entry, worker)
  local message = redis.call('XRANGE', BELLS, entry, entry)[1]
  if not message then
    redis.call('XACK', BELLS, GROUP, entry)
    return
  end
  local account = message[2][2]
  local known = redis.call('HMGET', account_key(account), 'bell', 'active', 'worker')
  if known[1] ~= entry then
    remove_entry(entry)
    return
  end
  -- Delivered twice, because the group was made anew: another worker has it.
  if given(known[2]) and known[3] ~= worker then return end
  if given(known[2]) and redis.call('HGET', delivery_key(known[2]), 'state') == 'active' then
    give_back(known[2], worker ~= leaver)
    taken[#taken + 1] = known[2]
    follow(job_and_account(known[2]))
  end
  next_turn(account)
end

local function bury(worker)
  redis.call('ZREM', P .. 'workers', worker)
  redis.call('HDEL', P .. 'requests', worker)
  redis.call('DEL', P .. 'knows:' .. worker)
end

local answer = redis.pcall('XINFO', 'CONSUMERS', BELLS, GROUP)
for _, flat in ipairs(answer.err and {} or answer) do
  local consumer = {}
  for i = 1, #flat, 2 do consumer[flat[i]] = flat[i + 1] end
  local seen = redis.call('ZSCORE', P .. 'workers', consumer.name)
  if consumer.name == leaver or not seen or tonumber(seen) < NOW - lease_ms then
    for _, entry in ipairs(redis.call('XPENDING', BELLS, GROUP, '-', '+', limit, consumer.name)) do
      take_back(entry[1], consumer.name)
    end
    if #redis.call('XPENDING', BELLS, GROUP, '-', '+', 1, consumer.name) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', BELLS, GROUP, consumer.name)
      bury(consumer.name)
    end
  end
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', '(' .. string.format('%.0f', NOW - lease_ms))) do
  -- A worker without a consumer has never taken anything.
  bury(worker)
end
if given(leaver) then bury(leaver) end
return taken
