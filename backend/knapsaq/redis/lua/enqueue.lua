-- Accept jobs, all of a call in one step.
-- keys: incomplete | job mark
-- args: now | payload score once
-- A score is the due second, or with a plus the delay in seconds.
-- The mark keeps a job out while it exists; one that is to be accepted only once, ever, sets it. A control may call a job
-- unique: what it is, and for how long, which is "start", "end" or milliseconds.
-- Returns for each job 1 if it was accepted, 0 if its key belongs to a job that has not ended, or else the id of the job
-- that stands for it, as it is not to be accepted beside it.
local incomplete = KEYS[1]
local OWN_KEYS = 1
local OWN_ARGS = 1
local MARKED_SECONDS = 86400
local call = redis.call
local base = base_of(incomplete)
local now = ARGV[1]

local jobs, marks = {}, {}
for i = 1, (#KEYS - OWN_KEYS) / 2 do
  jobs[i], marks[i] = KEYS[OWN_KEYS + 2 * i - 1], KEYS[OWN_KEYS + 2 * i]
end
local open = call('ZMSCORE', incomplete, unpack(jobs))
local some_marked = call('EXISTS', unpack(marks)) > 0

local stands = {} -- by what is unique, of this call

local answers, seen = {}, {}
local taken, payloads, scores, controls = {}, {}, {}, {}
for i, job in ipairs(jobs) do
  local mark, at = marks[i], OWN_ARGS + 3 * i
  local payload, score, once = ARGV[at - 2], ARGV[at - 1], ARGV[at]
  local control = control_of_record(payload)
  local unique = control and control.unique
  local holder = unique and (stands[unique[1]] or standing(base, unique))
  if holder then
    answers[i] = holder
  -- A job without a record cannot run; its key is free.
  elseif seen[job] or (open[i] and call('EXISTS', job) == 1) or (some_marked and call('EXISTS', mark) == 1) then
    answers[i] = 0
  else
    answers[i] = 1
    seen[job] = true
    if once == '1' then call('SET', mark, 1, 'EX', MARKED_SECONDS) end
    if unique then stands[unique[1]] = job end
    if string.sub(score, 1, 1) == '+' then now = time_ms(now) end -- asked for only where it is needed
    local n = #taken + 1
    taken[n], payloads[n], scores[n], controls[n] = job, payload, due_second(score, now), control
  end
end
accept(base, taken, payloads, scores, now, controls)
return answers
