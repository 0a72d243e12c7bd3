-- Look at some controlled jobs: forget those that have ended outside of our scripts, let go what nobody else lets go.
-- keys: incomplete
-- args: now cursor count
-- Returns the cursor for the next call, 0 at the end, and how many jobs were forgotten.
local incomplete = KEYS[1]
local now, cursor, count = unpack(ARGV)
local call = redis.call
local base = base_of(incomplete)
now = time_ms(now)

local forgotten = 0
local next, entries = unpack(call('HSCAN', base .. 'controls', cursor, 'COUNT', count))
for i = 1, #entries, 2 do
  local job = entries[i]
  if not call('ZSCORE', incomplete, job) then
    end_control(base, job, now)
    forgotten = forgotten + 1
  else
    local lane = call('HGET', base .. 'parked', job)
    if lane and string.sub(lane, 1, 1) ~= '>' and not call('ZSCORE', base .. 'lanes', lane) then
      rearm(base, lane, select(2, control_of(entries[i + 1])), now)
    end
  end
end
let_go_due(base, now, 1)
return { tonumber(next), forgotten }
