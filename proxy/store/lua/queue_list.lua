-- Jobs of a site, newest first. ARGV: site, status or "", group or "", place to go on before or "", how many.
-- Returns { place to go on or "", JSON, ... }; looks at 500 jobs at most, so a page may be short.
local site, status, group, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[5])
local before = ARGV[4] == '' and '+inf' or '(' .. ARGV[4]
local found = redis.call('ZREVRANGEBYSCORE', P .. 'jobs:' .. site, before, '-inf', 'WITHSCORES', 'LIMIT', 0, 500)
local page = { '' }
for i = 1, #found, 2 do
  if #page > limit then return page end
  local known = redis.call('HMGET', job_key(found[i]), 'status', 'group')
  if not known[1] and status .. group ~= '' then
    local fields = unfolded(found[i]) or {}
    known = { fields.status, fields.group }
  end
  if (status == '' or known[1] == status) and (group == '' or known[2] == group) then
    page[#page + 1] = view(found[i])
  end
  page[1] = found[i + 1]
end
if #found < 1000 then page[1] = '' end
return page
