-- Take back what dead workers held. ARGV: lease in ms, how many at most, a worker that leaves of its own (or "").
-- Returns the deliveries that were taken back. A delivery that workers died over five times in a row is dead.
local lease_ms, limit, leaver = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
allow_growth()
local taken = {}
-- A heartbeat from the future is of a clock that went back since: it counts from now, and not for hours.
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '(' .. string.format('%.0f', NOW), '+inf')) do
  redis.call('ZADD', P .. 'workers', NOW, worker)
end

local function take_back(stream, entry, worker)
  local message = redis.call('XRANGE', stream, entry, entry)[1]
  if not message then
    redis.call('XACK', stream, GROUP, entry)
    return
  end
  local account = message[2][2]
  local known = redis.call('HMGET', account_key(account), 'bell', 'active', 'worker')
  if known[1] ~= entry then
    remove_entry(account, entry)
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

local function is_gone(worker)
  local seen = redis.call('ZSCORE', P .. 'workers', worker)
  return worker == leaver or not seen or tonumber(seen) < NOW - lease_ms
end

local function pending_of(stream, worker, count)
  local found = redis.pcall('XPENDING', stream, GROUP, '-', '+', count, worker)
  return found.err and {} or found
end

for _, stream in ipairs({ BELLS, ERRANDS }) do
  local answer = redis.pcall('XINFO', 'CONSUMERS', stream, GROUP)
  for _, flat in ipairs(answer.err and {} or answer) do
    local consumer = {}
    for i = 1, #flat, 2 do consumer[flat[i]] = flat[i + 1] end
    if is_gone(consumer.name) then
      for _, entry in ipairs(pending_of(stream, consumer.name, limit)) do take_back(stream, entry[1], consumer.name) end
      if #pending_of(stream, consumer.name, 1) == 0 then redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, consumer.name) end
    end
  end
end
local names = redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', '(' .. string.format('%.0f', NOW - lease_ms))
if given(leaver) then names[#names + 1] = leaver end
for _, worker in ipairs(names) do
  -- What it still holds is taken back next time.
  if worker == leaver or #pending_of(BELLS, worker, 1) + #pending_of(ERRANDS, worker, 1) == 0 then
    redis.call('ZREM', P .. 'workers', worker)
    redis.call('HDEL', P .. 'requests', 'bells ' .. worker, 'errands ' .. worker)
    redis.call('DEL', P .. 'knows:' .. worker)
  end
end
return taken
