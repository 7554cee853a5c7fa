-- Cancel what has not been sent of a job. ARGV: job. Returns the job as JSON, or "" if it is not known.
local job = ARGV[1]
allow_growth()
local accounts = redis.call('HGET', job_key(job), 'accounts')
if not accounts then return view(job) or '' end
for account in string.gmatch(accounts, '[^,]+') do cancel_delivery(job .. ':' .. account) end
return view(job)
