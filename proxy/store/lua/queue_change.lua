-- Library behind queue_deliver: what people and the CMS do to jobs.

-- How long it may take to look whether a withdrawn post is there.
local MAX_LOOK_MS = DAY_MS
local LIVE = { ready = true, delayed = true, active = true }

-- Try a dead delivery again as from the start.
local function revive(id, expires_at_ms)
  local key = delivery_key(id)
  redis.call('HDEL', key, 'failures', 'deliveries', 'score')
  redis.call('HSET', key, 'expires_at_ms', expires_at_ms)
  reopen(id)
  redis.call('ZADD', P .. 'live', expires_at_ms, id)
  make_ready(id)
end

-- Send a notification again that has failed, wherever it is to go.
local function notify_again(job, site)
  local id = errand_id('notify', job, site)
  local key = delivery_key(id)
  local known = redis.call('HMGET', key, 'state', 'url', 'number')
  if known[1] ~= 'dead' then return end
  redis.call('ZREM', P .. 'gone', gone_name(site, known[2]))
  redis.call('HDEL', key, 'failures', 'deliveries')
  redis.call('HSET', key, 'expires_at_ms', string.format('%.0f', NOW + NOTIFY_MS))
  redis.call('ZADD', P .. 'live', NOW + NOTIFY_MS, id)
  redis.call('SADD', P .. 'chores', id)
  set_callback(job, callback_words(tonumber(known[3]), 'pending', tonumber(redis.call('HGET', key, 'attempts') or 0), 0))
  make_ready(id)
end

-- Withdraw a delivery that is to post. `after` says what becomes of it if its record is there: 'cancel', it stays;
-- 'delete', it goes. A stored intent tells that it may be: then the next attempt looks, and sends nothing.
local function withdraw_delivery(id, after)
  local key = delivery_key(id)
  local known = redis.call('HMGET', key, 'state', 'intent', 'action')
  local state, _, account = known[1], job_and_account(id)
  if known[3] == 'delete' or not (state == 'dead' or LIVE[state]) then return end
  if given(known[2]) then
    redis.call('HSET', key, 'after', after)
    if state == 'dead' then revive(id, NOW + MAX_LOOK_MS) end
    return
  end
  if state == 'dead' then reopen(id) end
  redis.call('ZREM', backlog_key(account), id)
  redis.call('ZREM', P .. 'delayed', id)
  finish_delivery(id, 'canceled')
  -- The worker of an active one will find that it may store no intent.
  if state == 'active' then next_turn(account) else hush(account) end
end
