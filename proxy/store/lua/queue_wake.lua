-- Let the accounts ring that have work. ARGV: cursor ("0" to begin), about how many live deliveries to look at.
-- Returns the next cursor, "0" when all were seen.
allow_growth()
local scanned, seen = redis.call('ZSCAN', P .. 'live', ARGV[1], 'COUNT', ARGV[2]), {}
for i = 1, #scanned[2], 2 do
  local _, account = job_and_account(scanned[2][i])
  if not seen[account] then pcall(ring, account) end
  seen[account] = true
end
return scanned[1]
