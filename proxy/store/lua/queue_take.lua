-- Hand deliveries to a worker.
-- ARGV: worker, request id, highest readable format, lease in ms, how many at most, stream, then either nothing (read
--   the next bells), or `pending` (the worker's own, also those leased already), or entry, account, ... that a
--   blocking read has delivered.
-- Returns { stranger } when the worker has no heartbeat, else { leases, { delivery, delivery hash, job hash }, ... }.
-- The tokens are the request id with :1, :2, ... behind; sent twice, it hands out the same again.
local worker, request, format, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local count, stream, pending = tonumber(ARGV[5]), P .. ARGV[6], ARGV[7] == 'pending'
local asked = ARGV[6] .. ' ' .. worker
allow_growth()
local seen = redis.call('ZSCORE', P .. 'workers', worker)
if not seen or tonumber(seen) < NOW - lease_ms then return { 'stranger' } end

local leases = { 'leases' }
local function add(leased)
  if leased then leases[#leases + 1] = leased end
end

if not pending and redis.call('HGET', P .. 'requests', asked) == request then
  for _, bell in ipairs(read_bells(stream, worker, 1000, '0')) do
    local id, token = held(worker, bell)
    if id and string.sub(token, 1, #request + 1) == request .. ':' then add(handed_over(id)) end
  end
  return leases
end

local bells = {}
if pending then
  bells = read_bells(stream, worker, count, '0')
elseif ARGV[7] then
  for i = 7, #ARGV, 2 do bells[#bells + 1] = { ARGV[i], { 'a', ARGV[i + 1] } } end
else
  bells = read_bells(stream, worker, count, '>')
end
for number, bell in ipairs(bells) do
  if not bell[2] then
    redis.call('XACK', stream, GROUP, bell[1])
  else
    local id = pending and held(worker, bell)
    add(id and handed_over(id)
      or lease_safely(bell[1], bell[2][2], worker, request .. ':' .. number, format, lease_ms))
  end
end
if not pending and #leases > 1 then redis.call('HSET', P .. 'requests', asked, request) end
return leases
