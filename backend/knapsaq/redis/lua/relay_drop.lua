-- Forget what has been said.
-- keys: relay
-- args: | entry
-- Returns how many entries that were.
local relay = unpack(KEYS)
local AT_ONCE = 1000

local dropped = 0
for first = 1, #ARGV, AT_ONCE do
  dropped = dropped + redis.call('XDEL', relay, unpack(ARGV, first, math.min(first + AT_ONCE - 1, #ARGV)))
end
if redis.call('XLEN', relay) == 0 then redis.call('DEL', relay) end
return dropped
