-- Library behind queue_deliver: what people and the CMS do to jobs.

-- Cancel a delivery of which nothing was sent; whether it is canceled now.
local function cancel_delivery(id)
  local known = redis.call('HMGET', delivery_key(id), 'state', 'attempts', 'action')
  if known[1] == 'canceled' then return true end
  if tonumber(known[2] or 0) > 0 or known[3] == 'delete' then return false end
  local _, account = job_and_account(id)
  if known[1] == 'ready' or known[1] == 'delayed' then
    redis.call('ZREM', backlog_key(account), id)
    redis.call('ZREM', P .. 'delayed', id)
    finish_delivery(id, 'canceled')
    hush(account)
    return true
  end
  if known[1] == 'active' then
    -- Its worker will find that it may store no intent.
    finish_delivery(id, 'canceled')
    next_turn(account)
    return true
  end
  return false
end

-- Try a dead delivery again as from the start.
local function revive(id, expires_at_ms)
  local key = delivery_key(id)
  redis.call('HDEL', key, 'failures', 'deliveries', 'score')
  redis.call('HSET', key, 'expires_at_ms', expires_at_ms)
  reopen(id)
  redis.call('ZADD', P .. 'live', expires_at_ms, id)
  make_ready(id)
end
