-- Dead letters that fit a filter: list them, count them by account and reason, try them again, or drop them.
-- ARGV: what (list, count, retry, drop); site, account, group ("" for any); a part of the reason, in lower case;
--   died from and until (ms, or -inf and +inf); place to go on from ("" to begin); how many to look at at most;
--   for how long what is tried again may wait, in ms.
-- Returns { place to go on from, "" at the end; how many fit; JSON, ... }. The newest come first in a list, the oldest
-- first when something happens to them.
local what, site, account, group, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local from, to, limit = ARGV[6], ARGV[7], tonumber(ARGV[9])
local set = site == '' and P .. 'dead' or P .. 'dead:' .. site
local backwards = what == 'list'
-- A place is a score, and how many of that score have been passed.
local at, passed = string.match(ARGV[8], '^(.+) (%d+)$')
if at and backwards then to = at elseif at then from = at end
allow_growth()

local found = redis.call(backwards and 'ZREVRANGEBYSCORE' or 'ZRANGEBYSCORE', set, backwards and to or from,
  backwards and from or to, 'WITHSCORES', 'LIMIT', passed or 0, limit)

local function fits(known)
  return known[1] == 'dead' and (account == '' or known[2] == account)
    and (reason == '' or string.find(string.lower(known[3] or ''), reason, 1, true) ~= nil)
end

local function told(id, job, died_at_ms, known)
  local of_job = redis.call('HMGET', job_key(job), 'post', 'group')
  return cjson.encode({ job = job, account = known[2], error = known[3] or '', site = known[4], attempts = known[5] or '0',
    died_at_ms = died_at_ms, post = of_job[1] or '', group = of_job[2] or '' })
end

-- What was to be deleted stays.
local function drop(id)
  local deletes = redis.call('HGET', delivery_key(id), 'action') == 'delete'
  reopen(id)
  finish_delivery(id, deletes and 'done' or 'canceled', deletes and { action = 'post' })
end

local function try_again(id, its_account)
  local holder = account_key(its_account)
  revive(id, NOW + tonumber(ARGV[10]))
  if redis.call('HGET', holder, 'gate_reason') == 'credentials' then
    redis.call('HDEL', holder, 'refused')
    open_gate(its_account)
  end
end

local shown, count, groups, order = {}, 0, {}, {}
local function act(id, job, died_at_ms, known)
  if what == 'list' then
    shown[#shown + 1] = told(id, job, died_at_ms, known)
    return
  end
  if what == 'retry' then try_again(id, known[2]) else drop(id) end
  follow(job)
end

local function tally(died_at_ms, known)
  local key = known[2] .. '\n' .. (known[3] or '')
  if not groups[key] then
    groups[key] = { account = known[2], reason = known[3] or '', count = 0, last_at_ms = died_at_ms }
    order[#order + 1] = key
  end
  groups[key].count = groups[key].count + 1
  groups[key].last_at_ms = died_at_ms
end

local function visit(id, died_at_ms)
  local job = job_and_account(id)
  local known = redis.call('HMGET', delivery_key(id), 'state', 'account', 'error', 'site', 'attempts')
  if not fits(known) or (group ~= '' and redis.call('HGET', job_key(job), 'group') ~= group) then return end
  if what == 'count' then tally(died_at_ms, known) else act(id, job, died_at_ms, known) end
  count = count + 1
end

local last, left = at, tonumber(passed or 0)
for i = 1, #found, 2 do
  if found[i + 1] ~= last then last, left = found[i + 1], 0 end
  -- Damage to one must not stop the others.
  pcall(visit, found[i], found[i + 1])
  if redis.call('ZSCORE', set, found[i]) then left = left + 1 end
end
for _, key in ipairs(order) do shown[#shown + 1] = cjson.encode(groups[key]) end
return { #found < 2 * limit and '' or last .. ' ' .. left, count, unpack(shown) }
