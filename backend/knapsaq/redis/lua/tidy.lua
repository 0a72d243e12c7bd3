-- Look at some controlled or parked jobs: forget those that somebody else has ended, let go what nobody else lets go.
-- keys: incomplete
-- args: now count | cursor
-- The cursors are those of the controlled and of the parked jobs.
-- Returns how many jobs were forgotten, and the cursors for the next call, 0 at the end.
local incomplete = KEYS[1]
local now, count = unpack(ARGV, 1, 2)
local OWN_ARGS = 2
local call = redis.call
local base = base_of(incomplete)
now = time_ms(now)

local answer = { 0 }
local seen = {} -- lanes of this call, as thousands of jobs may wait in one
for i, name in ipairs({ 'controls', 'parked' }) do
  local next, entries = unpack(call('HSCAN', base .. name, ARGV[OWN_ARGS + i], 'COUNT', count))
  answer[i + 1] = tonumber(next)
  for at = 1, #entries, 2 do
    local job = entries[at]
    if not call('ZSCORE', incomplete, job) then
      steer().end_control(base, job, now)
      answer[1] = answer[1] + 1
    else
      local lane = call('HGET', base .. 'parked', job)
      if lane and string.sub(lane, 1, 1) ~= '>' and not seen[lane] then
        seen[lane] = true
        if not call('ZSCORE', base .. 'lanes', lane) then steer().rearm(base, lane, select(2, steer().control_get(base, job)), now) end
      end
    end
  end
end
steer().let_go_due(base, now)
steer().show_ready(base)
return answer
