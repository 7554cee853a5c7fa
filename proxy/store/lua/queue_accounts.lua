-- How accounts stand. ARGV: lease in ms; then for each account its name, a delivery of it or "", its DID or "".
-- Returns JSON: { now_ms, paused, paused_at_ms, emptied_at_ms, workers, accounts = { {} } }; `place` counts from 0.
local lease_ms = tonumber(ARGV[1])
local control = redis.call('HMGET', P .. 'control', 'paused', 'paused_at_ms', 'emptied_at_ms')
local servers = redis.call('ZRANGEBYSCORE', P .. 'workers', NOW - lease_ms, '+inf')

local function how_it_stands(account, id, did)
  local known = redis.call('HMGET', account_key(account), 'paused', 'gate_until_ms', 'gate_reason', 'active', 'worker',
    'failures', 'broken', 'refused')
  local serving = 0
  for _, worker in ipairs(servers) do
    if can_serve(worker, account, known[8]) then serving = serving + 1 end
  end
  local pace = given(did) and redis.call('HGET', P .. 'pauses', did) or nil
  local open = tonumber(known[2] or 0)
  return { account = account, paused = given(known[1]) and 1 or 0, gate_until_ms = known[2] or '0',
    gate_reason = (open == -1 or open > NOW) and known[3] or '', active = known[4] or '', worker = known[5] or '',
    failures = known[6] or '0', broken = given(known[7]) and 1 or 0, workers = serving,
    waiting = redis.call('ZCARD', backlog_key(account)),
    place = given(id) and redis.call('ZRANK', backlog_key(account), id) or -1,
    pace_until_ms = string.format('%.0f', math.floor((tonumber(pace or 0) or 0) / 1000)) }
end

local accounts = {}
for i = 2, #ARGV, 3 do accounts[#accounts + 1] = how_it_stands(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
return cjson.encode({ now_ms = string.format('%.0f', NOW), paused = ALL_PAUSED and 1 or 0, paused_at_ms = control[2] or '0',
  emptied_at_ms = control[3] or '0', workers = #servers, accounts = accounts })
