-- Forget what has been told.
-- keys: relay
-- args: first | entry
-- Returns how many entries that were.
local relay = unpack(KEYS)
local first = ARGV[1]
local AT_ONCE = 1000

local dropped = redis.call('XDEL', relay, first)
for from = 2, #ARGV, AT_ONCE do
  dropped = dropped + redis.call('XDEL', relay, unpack(ARGV, from, math.min(from + AT_ONCE - 1, #ARGV)))
end
if redis.call('XLEN', relay) == 0 then redis.call('DEL', relay) end
return dropped
