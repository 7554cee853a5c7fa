-- Was the store emptied, or is it another? ARGV: the mark that the caller knows ("" for none), a new one.
-- Returns { the mark there is, 1 if what the caller knew is gone, 1 if everything is paused }.
allow_growth()
local control = P .. 'control'
local stored = redis.call('HGET', control, 'mark')
if not stored then
  stored = ARGV[2]
  redis.call('HSET', control, 'mark', stored)
end
local lost = ARGV[1] ~= '' and ARGV[1] ~= stored
if lost then redis.call('HSETNX', control, 'emptied_at_ms', NOW) end
return { stored, lost and 1 or 0, ALL_PAUSED and 1 or 0 }
