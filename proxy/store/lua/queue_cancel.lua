-- Withdraw a job: what has not been sent is canceled, what may have been is looked at first. ARGV: job. Returns the job as JSON, or "" if it is not known.
local job = ARGV[1]
allow_growth()
local accounts = redis.call('HGET', job_key(job), 'accounts')
if not accounts then return view(job) or '' end
for account in string.gmatch(accounts, '[^,]+') do
  local id = job .. ':' .. account
  withdraw_delivery(id, redis.call('HGET', delivery_key(id), 'after') or 'cancel')
end
follow(job)
return view(job)
