-- A job as JSON with its payload: { JSON or "", payload or false }. ARGV: job.
return { view(ARGV[1]) or '', redis.call('HGET', job_key(ARGV[1]), 'payload') }
