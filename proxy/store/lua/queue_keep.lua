-- Library behind queue: what is kept of what is over. Each is one field of a large hash, which costs a fraction of
-- what a key of its own would.
--
-- over[job]: JSON array of the format, the job's fields in the order of JOB_FIELDS, then for each delivery an array
-- in the order of DELIVERY_FIELDS; what is as usual is "", and "" is left out at the end.
-- posts[site:id]: words in the order of WHO_FIELDS, "-" for none; `job` and `last` are none in a tombstone, and
-- `since` is the day on which it became one.
-- As FORMAT in proxy/syndication/job.py. What the one before has folded lacks nothing but the last fields.
local FORMAT = 2
local JOB_FIELDS = { 'site', 'post', 'status', 'created_at_ms', 'finished_at_ms', 'first_published_at_ms', 'revision', 'group',
  'edition', 'generation', 'priority', 'callback' }
local JOB_SITE = 5 -- in an answer to HMGET open accounts enrich callback_url and JOB_FIELDS
local DELIVERY_FIELDS = { 'account', 'state', 'did', 'rkey', 'cid', 'last', 'attempts', 'failures', 'degraded', 'uri',
  'generation', 'action' }
local WHO_FIELDS = { 'format', 'job', 'url', 'first_at_ms', 'revision', 'state', 'generation', 'last', 'since' }
local DAY_MS = 86400000

-- A hash as a table, but for the fields in `skip`.
local function hash_of(key, skip)
  local flat, fields = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do
    if not skip[flat[i]] then fields[flat[i]] = flat[i + 1] end
  end
  return fields
end

-- A table as the arguments of HSET.
local function flat(fields)
  local list = {}
  for name, value in pairs(fields) do
    list[#list + 1] = name
    list[#list + 1] = value
  end
  return list
end

local USUAL = { edition = '1', generation = '0', priority = 'normal', failures = '0', degraded = '[]', action = 'post' }

-- The values of `names`, of which `changes` are newer than `values`.
local function packed(names, values, changes)
  local list, length = {}, 0
  for i, name in ipairs(names) do
    local value = changes[name] or values[i] or ''
    if value == USUAL[name] then value = '' end
    if value ~= '' then length = i end
    list[i] = value
  end
  for i = length + 1, #list do list[i] = nil end
  return list
end

-- Into `fields` what packed made of those `names`.
local function unpacked(names, list, fields)
  for i, name in ipairs(names) do fields[name] = given(list[i]) and list[i] or USUAL[name] end
  return fields
end

-- A URI that follows from DID and record key is not kept.
local function packed_delivery(id, changes)
  local list = redis.call('HMGET', delivery_key(id), unpack(DELIVERY_FIELDS))
  local did, rkey, uri = list[3], list[4], changes.uri or list[10]
  if given(did) and given(rkey) and uri == 'at://' .. did .. '/app.bsky.feed.post/' .. rkey then
    list[10], changes.uri = '', nil
  end
  return packed(DELIVERY_FIELDS, list, changes)
end

-- The job is over. `known`: its fields as JOB_SITE has them; `changes`: news of it and of its delivery `id`.
local function fold(job, known, id, changes)
  local kept, keys = { FORMAT, packed(JOB_FIELDS, { unpack(known, JOB_SITE) }, changes) }, { job_key(job) }
  for account in string.gmatch(known[2], '[^,]+') do
    local other = job .. ':' .. account
    kept[#kept + 1] = packed_delivery(other, other == id and changes or {})
    keys[#keys + 1] = delivery_key(other)
  end
  redis.call('DEL', unpack(keys))
  redis.call('HSET', P .. 'over', job, cjson.encode(kept))
  redis.call('ZADD', P .. 'done', NOW, job)
end

local function is_readable(format)
  return format == FORMAT or format == FORMAT - 1
end

-- The fields of a job that is over, and a list of those of its deliveries; nil when there is none. Of one that a
-- newer version has folded only the format is known.
local function unfolded(job)
  local text = redis.call('HGET', P .. 'over', job)
  if not text then return nil end
  local kept = cjson.decode(text)
  local fields, deliveries, accounts = { id = job, format = tostring(kept[1]), open = '0' }, {}, {}
  if not is_readable(kept[1]) then return fields, deliveries end
  unpacked(JOB_FIELDS, kept[2], fields)
  for number = 3, #kept do
    local delivery = unpacked(DELIVERY_FIELDS, kept[number], { format = tostring(kept[1]), job = job, site = fields.site })
    deliveries[#deliveries + 1] = delivery
    accounts[#accounts + 1] = delivery.account
  end
  fields.accounts = table.concat(accounts, ',')
  return fields, deliveries
end

-- One of JOB_FIELDS of the job has another value.
local function revise(job, name, value)
  if redis.call('EXISTS', job_key(job)) == 1 then
    redis.call('HSET', job_key(job), name, value)
    return
  end
  local text = redis.call('HGET', P .. 'over', job)
  local kept = text and cjson.decode(text) or {}
  if not is_readable(kept[1]) then return end
  kept[2] = packed(JOB_FIELDS, kept[2], { [name] = value })
  redis.call('HSET', P .. 'over', job, cjson.encode(kept))
end

-- The token with which a delivery of a job that is over was settled.
local function folded_last(id)
  local job, account = job_and_account(id)
  local _, deliveries = unfolded(job)
  for _, delivery in ipairs(deliveries or {}) do
    if delivery.account == account then return delivery.last end
  end
end

-- What is over is to live again: it gets hashes of its own.
local function unfold(job)
  local fields, deliveries = unfolded(job)
  redis.call('HDEL', P .. 'over', job)
  redis.call('HSET', job_key(job), unpack(flat(fields)))
  for _, delivery in ipairs(deliveries) do
    redis.call('HSET', delivery_key(job .. ':' .. delivery.account), unpack(flat(delivery)))
  end
end

-- Who the post is that is called site:id: a table of WHO_FIELDS, nil if it is not known.
local function who_is(name)
  local text = redis.call('HGET', P .. 'posts', name)
  if not text then return nil end
  local who, i = {}, 0
  for word in string.gmatch(text, '%S+') do
    i = i + 1
    if WHO_FIELDS[i] and word ~= '-' then who[WHO_FIELDS[i]] = word end
  end
  return who
end

local function remember(name, who)
  local words = {}
  for i, field in ipairs(WHO_FIELDS) do words[i] = given(who[field]) and who[field] or '-' end
  redis.call('HSET', P .. 'posts', name, table.concat(words, ' '))
end
