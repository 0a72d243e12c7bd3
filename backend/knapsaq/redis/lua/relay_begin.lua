-- Accept jobs of nodes whose workflow is in another slot, each run of a node once.
-- keys: relay | job mark
-- args: now queue | run record due
-- Relay names the slot alone. A mark is the run of the node that was accepted last; it stays until that has ended.
-- Returns for each job 1 if it was accepted, 0 if that run, or a later one, was before.
local relay = unpack(KEYS)
local now, queue = unpack(ARGV, 1, 2)
local OWN_KEYS = 1
local OWN_ARGS = 2

-- A key of a wrong kind has to end the call before anything is marked.
redis.call('LLEN', 'saq:' .. queue .. ':queued')
redis.call('ZCARD', 'saq:' .. queue .. ':incomplete')

local answers, first_ones, later_ones = {}, {}, {}
for i = 1, (#KEYS - OWN_KEYS) / 2 do
  local job, mark = KEYS[OWN_KEYS + 2 * i - 1], KEYS[OWN_KEYS + 2 * i]
  local run, record, due = unpack(ARGV, OWN_ARGS + 3 * i - 2, OWN_ARGS + 3 * i)
  if tonumber(redis.call('GET', mark) or 0) >= tonumber(run) then
    answers[i] = 0
  else
    answers[i] = 1
    redis.call('SET', mark, run)
    local accepted = run == '1' and first_ones or later_ones
    accepted[#accepted + 1] = { job, record, due ~= '' and due or nil }
  end
end
now = time_ms(now)
if #first_ones > 0 then flow_enqueue(queue, first_ones, now, false) end
if #later_ones > 0 then flow_enqueue(queue, later_ones, now, true) end
return answers
