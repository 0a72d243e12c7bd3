-- Count the jobs of a queue by where they are, in one moment.
-- keys: queued active incomplete dead
-- args: most
-- Returns how many may run, run, are due later, are parked, have not ended, and are dead. Those that were let go may run;
-- where more than most are parked, they count as parked all the same, as telling them apart would take too long.
local queued, active, incomplete, dead = unpack(KEYS)
local most = ARGV[1]
local call = redis.call
local base = base_of(incomplete)

local parked = call('HLEN', base .. 'parked')
if parked > 0 and parked <= tonumber(most) then
  for _, lane in ipairs(call('HVALS', base .. 'parked')) do
    if string.sub(lane, 1, 1) == '>' then parked = parked - 1 end
  end
end
local open = call('ZCARD', incomplete)
local running = call('LLEN', active)
local scheduled = call('ZCOUNT', incomplete, '(0', '+inf')
local may_run = call('LLEN', queued)
if call('EXISTS', base .. 'parked', base .. 'ready', base .. 'ready tenants') > 0 then
  -- The pools of tenants are too many to look into, and whatever is nowhere else is in one.
  may_run = math.max(0, open - running - scheduled - parked)
end
return { may_run, running, scheduled, parked, open, call('ZCARD', dead) }
