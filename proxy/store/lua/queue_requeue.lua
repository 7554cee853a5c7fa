-- Try again what has failed of a job, its notification too. ARGV: job, how long it may wait in ms, account, ... (none: all of them).
-- Returns the job as JSON, or "" if it is not known. Gates that wait for a person open.
local job = ARGV[1]
allow_growth()
local accounts = redis.call('HGET', job_key(job), 'accounts')
if not accounts then
  local folded = unfolded(job)
  if folded and folded.site then notify_again(job, folded.site) end
  return view(job) or ''
end
local wanted = table.concat(ARGV, ',', 3)
for account in string.gmatch(accounts, '[^,]+') do
  local id = job .. ':' .. account
  if wanted == '' or listed(wanted, account) then
    local state = redis.call('HGET', delivery_key(id), 'state')
    if state == 'dead' then revive(id, NOW + tonumber(ARGV[2])) end
    if redis.call('HGET', account_key(account), 'gate_reason') == 'credentials' and state ~= 'done' and state ~= 'canceled' then
      redis.call('HDEL', account_key(account), 'refused')
      open_gate(account)
    end
  end
end
notify_again(job, redis.call('HGET', job_key(job), 'site'))
follow(job)
return view(job)
