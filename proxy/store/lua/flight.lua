-- What scripts that write need to know of a flight, the hash that says who asks the upstream for an answer.

-- Whether who holds `token` may write the answer `entry`: nobody has led after it, and if nobody is known to
-- have led, there is nothing that it could replace.
local function may_write(entry, flight, token)
  local leader = redis.call('HGET', flight, 'token')
  if leader then
    return leader == token
  end
  return redis.call('TYPE', entry).ok ~= 'hash'
end

-- The flight has landed: its followers find the answer. The token stays, so that earlier leaders are known.
local function landed(flight, channel, news)
  redis.call('HDEL', flight, 'leased_until_at', 'as_of', 'failures', 'failing_until_at', 'error', 'alone_until_at')
  redis.call('PUBLISH', channel, news)
end
