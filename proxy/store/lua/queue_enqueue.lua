-- Take in a post. ARGV: name, value, ... of proxy/syndication/desk.Submission, instants and ages in ms.
-- Returns { verdict, 1 if this is the replay of an earlier answer, first published_at, generation, the job or "",
--   the job as JSON or "", of a post without a job the status that its job ended with }. Everything about one
--   post is decided here, in one step.
local S = {}
for i = 1, #ARGV, 2 do S[ARGV[i]] = ARGV[i + 1] end
local IDEM, POST, SITE = P .. 'idem:' .. S.site .. ':' .. S.key, S.site .. ':' .. S.post, P .. 'site:' .. S.site
local published_ms = tonumber(S.published_at_ms)

local replay = redis.call('HMGET', IDEM, 'payload', 'verdict', 'first_at_ms', 'generation', 'job', 'view', 'state')
if replay[2] and replay[1] ~= S.payload_hash then return { 'key_reused', 0, S.published_at_ms, '0', '', '' } end
-- Without a key of the CMS, the same words are a replay only as long as no others came.
local known = who_is(POST)
if replay[2] and (S.explicit_key == '1' or (known and known.last == string.sub(S.key, 1, 16))) then
  return { replay[2], 1, replay[3], replay[4], replay[5], replay[6], replay[7] or '' }
end

local who = known or { format = S.format, first_at_ms = S.published_at_ms, generation = '0' }
local first_ms, generation, state, job = who.first_at_ms, who.generation, who.state, who.job
local stored = {}
if job then
  local fields = redis.call('HMGET', job_key(job), 'id', 'open', 'accounts', 'status')
  if not fields[1] then
    local folded = unfolded(job) or {}
    fields = { folded.id, folded.open, folded.accounts, folded.status }
  end
  stored = { id = fields[1], open = tonumber(fields[2] or 0), accounts = fields[3] or '' }
  state = fields[4] or state
end

local function answer(verdict, about)
  local shown = about and view(about) or ''
  redis.call('HSET', IDEM, 'payload', S.payload_hash, 'verdict', verdict, 'first_at_ms', first_ms, 'generation', generation,
    'job', about or '', 'view', shown, 'state', about and '' or state or '')
  redis.call('ZADD', P .. 'idem', NOW, S.site .. ':' .. S.key)
  if verdict ~= 'outdated' then who.last = string.sub(S.key, 1, 16) end
  if known or who.job then remember(POST, who) end
  return { verdict, 0, first_ms, generation, about or '', shown, about and '' or state or '' }
end

-- A higher revision is newer; without revisions, what comes later.
local function is_newer(revision)
  return S.revision == '' or not given(revision) or tonumber(S.revision) > tonumber(revision)
end

local function add_delivery(in_job, account, did, action, due_ms, reason)
  local id = in_job .. ':' .. account
  -- What it waits for by the site's own wish, its schedule and its pace, does not count as its age.
  local expires_ms = math.max(NOW, due_ms) + tonumber(S.max_age_ms)
  redis.call('HSET', delivery_key(id), 'format', S.format, 'state', 'ready', 'job', in_job, 'account', account, 'site', S.site,
    'did', did, 'expires_at_ms', expires_ms, 'generation', generation,
    'action', action)
  if S.priority == 'urgent' then redis.call('HSET', delivery_key(id), 'urgent', '1') end
  redis.call('ZADD', P .. 'live', expires_ms, id)
  reopen(id)
  if due_ms > NOW then make_delayed(id, due_ms, reason) else make_ready(id) end
end

-- For each account of the submission: account, DID.
local function each_account(visit)
  local dids = {}
  for did in string.gmatch(S.dids, '([^,]*),') do dids[#dids + 1] = did end
  local number = 0
  for account in string.gmatch(S.accounts, '[^,]+') do
    number = number + 1
    visit(account, dids[number] or '')
  end
end

local function due()
  redis.call('HSET', SITE, 'per_hour', S.posts_per_hour)
  if published_ms > NOW then return published_ms, 'schedule' end
  return paced(S.site, tonumber(S.posts_per_hour)), 'quota'
end

-- What the job's chain is to have beside its deliveries.
local function want(of_job, name, value)
  if given(value) then redis.call('HSET', job_key(of_job), name, value) else redis.call('HDEL', job_key(of_job), name) end
end

local function create(action)
  if tonumber(redis.call('HGET', SITE, 'waiting') or 0) >= tonumber(S.max_waiting) then
    return { 'full', 0, first_ms, generation, '', '' }
  end
  -- Refused for want of memory, nothing was stored, and the CMS is told.
  need_growth()
  redis.call('HSET', job_key(S.job), 'format', S.format, 'id', S.job, 'site', S.site, 'post', S.post, 'payload', S.payload,
    'revision', S.revision, 'edition', 1, 'accounts', S.accounts, 'group', S.group, 'created_at_ms', NOW,
    'priority', S.priority, 'first_published_at_ms', first_ms, 'generation', generation,
    'open', 0, 'status', 'pending')
  redis.call('ZADD', P .. 'jobs:' .. S.site, redis.call('INCR', P .. 'seq'), S.job)
  want(S.job, 'callback_url', S.callback_url)
  local due_ms, reason = NOW, ''
  if action == 'post' then
    want(S.job, 'enrich', S.enrich)
    due_ms, reason = due()
  end
  each_account(function(account, did) add_delivery(S.job, account, did, action, due_ms, reason) end)
  if action == 'post' then
    who.job, who.url, who.revision, who.state, who.since = S.job, string.sub(S.url_hash, 1, 16), S.revision, 'pending', nil
  end
  redis.call('PUBLISH', P .. 'news', S.job)
  return answer(action == 'post' and 'queued' or 'recorded', S.job)
end

local function note_revision()
  if S.revision == '' or not is_newer(who.revision) then return end
  who.revision = S.revision
  if job then revise(job, 'revision', S.revision) end
end

-- It goes out at another instant than it was to.
local function reschedule(id, due_ms, reason)
  local expires_ms = math.max(NOW, due_ms) + tonumber(S.max_age_ms)
  redis.call('HSET', delivery_key(id), 'expires_at_ms', expires_ms)
  redis.call('ZADD', P .. 'live', expires_ms, id)
  if due_ms > NOW then make_delayed(id, due_ms, reason) else make_ready(id) end
end

-- A deletion that has not been carried out is called off: the record stays.
local function restore(id)
  local _, account = job_and_account(id)
  local state = redis.call('HGET', delivery_key(id), 'state')
  if state == 'active' then redis.call('HSET', delivery_key(id), 'after', 'keep') end
  if state ~= 'dead' and state ~= 'ready' and state ~= 'delayed' then return end
  if state == 'dead' then reopen(id) end
  redis.call('ZREM', backlog_key(account), id)
  redis.call('ZREM', P .. 'delayed', id)
  finish_delivery(id, 'done', { action = 'post' })
  hush(account)
end

-- The edit may come with another priority: what is ready takes its place anew.
local function prioritise(id, state, was_urgent)
  if state == 'active' or was_urgent == (S.priority == 'urgent') then return end
  if was_urgent then
    redis.call('HDEL', delivery_key(id), 'urgent')
  else
    redis.call('HSET', delivery_key(id), 'urgent', '1')
  end
  if state ~= 'ready' then return end
  redis.call('HDEL', delivery_key(id), 'score')
  make_ready(id)
end

-- New words for a job that still waits, or whose failed deliveries get another chance by them, or which an account
-- joins (again). What was withdrawn is wanted again; what is done stays.
local function replace()
  stop_enriching(job, S.site)
  redis.call('HDEL', job_key(job), 'enrichment', 'unenriched')
  redis.call('HSET', job_key(job), 'format', S.format, 'payload', S.payload, 'revision', S.revision, 'group', S.group,
    'priority', S.priority)
  want(job, 'callback_url', S.callback_url)
  want(job, 'enrich', S.enrich)
  redis.call('HINCRBY', job_key(job), 'edition', 1)
  who.revision, who.url = S.revision, string.sub(S.url_hash, 1, 16)
  local due_ms, reason
  local function when()
    if not due_ms then due_ms, reason = due() end
    return due_ms, reason
  end
  local deletions = {}
  each_account(function(account, did)
    local id = job .. ':' .. account
    local key = delivery_key(id)
    local fields = redis.call('HMGET', key, 'state', 'waiting_for', 'intent', 'action', 'urgent')
    local state = fields[1]
    if fields[4] == 'delete' then
      deletions[#deletions + 1] = id
      return
    end
    if state then
      redis.call('HDEL', key, 'after')
      prioritise(id, state, given(fields[5]))
    end
    if not state or state == 'canceled' then
      if not listed(stored.accounts, account) then
        redis.call('HSET', job_key(job), 'accounts', redis.call('HGET', job_key(job), 'accounts') .. ',' .. account)
      end
      redis.call('DEL', key)
      add_delivery(job, account, did, 'post', when())
    elseif state == 'dead' then
      revive(id, NOW + tonumber(S.max_age_ms))
    elseif (state == 'ready' or state == 'delayed') and not given(fields[3]) then
      if published_ms > NOW then
        redis.call('HDEL', job_key(job), 'paced_ms')
        reschedule(id, published_ms, 'schedule')
      elseif state == 'delayed' and fields[2] == 'schedule' then
        reschedule(id, when())
      elseif state == 'ready' then
        -- Other words are enriched anew, or not at all.
        make_ready(id)
      end
    end
  end)
  -- Last, as these may end the job.
  for _, id in ipairs(deletions) do restore(id) end
  for account in string.gmatch(stored.accounts, '[^,]+') do
    if not listed(S.accounts, account) then withdraw_delivery(job .. ':' .. account, 'cancel') end
  end
  follow(job)
  return answer('updated', job)
end

-- Whether the submission names an account that has not got what others have of a job which is over.
local function has_newcomer()
  local reached = {}
  local _, deliveries = unfolded(job)
  for _, delivery in ipairs(deliveries or {}) do
    if delivery.state ~= 'canceled' then reached[#reached + 1] = delivery.account end
  end
  local list = table.concat(reached, ',')
  for account in string.gmatch(S.accounts, '[^,]+') do
    if list ~= '' and not listed(list, account) then return true end
  end
  return false
end

-- Whether the job is over and a record of it is on an account.
local function is_there_and_folded()
  local _, deliveries = unfolded(job)
  for _, delivery in ipairs(deliveries or {}) do
    if delivery.state == 'done' and delivery.action ~= 'delete' then return true end
  end
  return false
end

-- Whether all that there was of the post has been deleted.
local function is_unpublished()
  if not stored.id then return state == 'unpublished' end
  local deleted = false
  local _, deliveries = unfolded(job)
  for _, delivery in ipairs(deliveries or {}) do
    if delivery.state == 'done' and delivery.action ~= 'delete' then return false end
    deleted = deleted or delivery.state == 'done'
  end
  return deleted
end

-- The record of a delivery that is done is to go.
local function unpublish(id)
  if is_there_and_folded() then unfold(job) end
  local fields = redis.call('HMGET', delivery_key(id), 'state', 'action')
  -- A deletion that was called off while it was under way is on again.
  if fields[1] == 'active' and fields[2] == 'delete' then redis.call('HDEL', delivery_key(id), 'after') end
  if fields[1] ~= 'done' or fields[2] ~= 'post' then return end
  local expires_ms = NOW + tonumber(S.max_age_ms)
  redis.call('HDEL', delivery_key(id), 'failures', 'deliveries', 'score', 'attempts')
  redis.call('HSET', delivery_key(id), 'action', 'delete', 'expires_at_ms', expires_ms)
  reopen(id)
  redis.call('HSET', job_key(job), 'format', S.format, 'payload', S.payload)
  want(job, 'callback_url', S.callback_url)
  redis.call('ZADD', P .. 'live', expires_ms, id)
  make_ready(id)
end

-- Not wanted any more: what was not sent is canceled, what was may have to go.
local function withdraw()
  if not stored.id then
    if S.unpublish ~= 'delete' or (state ~= 'completed' and state ~= 'partial') then return answer('recorded') end
    who.state = 'unpublished'
    return create('delete')
  end
  allow_growth()
  note_revision()
  local live = stored.open > 0
  for account in string.gmatch(stored.accounts, '[^,]+') do
    local id = job .. ':' .. account
    withdraw_delivery(id, S.unpublish == 'delete' and 'delete' or 'cancel')
    if S.unpublish == 'delete' then unpublish(id) end
  end
  follow(job)
  return answer(live and 'updated' or 'recorded', job)
end

-- Not taken in. A key of the CMS stands for these words all the same.
local function skipped()
  if S.explicit_key == '1' then
    need_growth()
    return answer('skipped')
  end
  return { 'skipped', 0, first_ms, generation, '', '' }
end

if not known then
  if S.skip ~= '' then return skipped() end
  return create('post')
end
if string.sub(S.url_hash, 1, 16) ~= who.url and published_ms > tonumber(first_ms) then
  return { 'id_reused', 0, first_ms, generation, '', '' }
end
if not is_newer(who.revision) then
  -- The same revision under another key is no news, and no mistake.
  local same = stored.id and redis.call('HGET', job_key(job), 'payload') == S.payload
  return answer(same and 'updated' or 'outdated', stored.id and job)
end
if S.wanted ~= '1' then return withdraw() end
if stored.id and (stored.open > 0 or has_dead(job, stored.accounts)) then return replace() end
if is_unpublished() then
  -- Published again: another record, with a key of its own.
  generation = string.format('%d', tonumber(generation or 0) + 1)
  local created = create('post')
  if created[1] == 'full' then return created end
  who.generation = generation
  remember(POST, who)
  return created
end
if stored.id and S.skip ~= 'too_old' and has_newcomer() then
  -- Refused for want of memory, nothing was changed.
  need_growth()
  redis.call('HSET', SITE, 'per_hour', S.posts_per_hour)
  unfold(job)
  return replace()
end
-- Nothing of it was ever sent, or nobody remembers: as if it were new, under the same record key.
if state == 'canceled' or state == 'failed' then
  if S.skip ~= '' then return skipped() end
  return create('post')
end
note_revision()
return answer('recorded', stored.id and job)
