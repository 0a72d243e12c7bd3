-- Accept jobs, all of a call in one step.
-- keys: incomplete | job mark
-- args: now | payload score once
-- A score is the due second, or with a plus the delay in seconds.
-- The mark keeps a job out while it exists; one that is to be accepted only once, ever, sets it. A control may call a job
-- unique: what it is, and for how long, which is "start", "end" or milliseconds.
-- Returns for each job 1 if it was accepted, 0 if its key belongs to a job that has not ended, or else the id of the job
-- that stands for it, as it is not to be accepted beside it.
local incomplete = KEYS[1]
local now = ARGV[1]
local OWN_KEYS = 1
local OWN_ARGS = 1
local MARKED_SECONDS = 86400
local call = redis.call
local base = base_of(incomplete)
local all_new = call('EXISTS', unpack(KEYS, OWN_KEYS + 1)) == 0

-- A job without a record cannot run; its key is free.
local function is_taken(job, mark)
  return call('EXISTS', mark) == 1 or (call('ZSCORE', incomplete, job) and call('EXISTS', job) == 1)
end

local answers, seen, marked = {}, {}, {}
local batch = new_batch()
local stands = {} -- by what is unique, of this call
for i = 1, (#KEYS - OWN_KEYS) / 2 do
  local job, mark = KEYS[OWN_KEYS + 2 * i - 1], KEYS[OWN_KEYS + 2 * i]
  local at = OWN_ARGS + 3 * i - 2
  local payload, score, once = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local control = control_of_record(payload)
  local unique = control and control.unique
  local holder = unique and (stands[unique[1]] or standing(base, unique))
  if holder then
    answers[i] = holder
  elseif seen[job] or (not all_new and is_taken(job, mark)) then
    answers[i] = 0
  else
    answers[i] = 1
    seen[job] = true
    if once == '1' then marked[#marked + 1] = mark end
    if unique then stands[unique[1]] = job end
    if string.sub(score, 1, 1) == '+' then now = time_ms(now) end -- asked for only where it is needed
    admit(batch, job, payload, due_second(score, now), control)
  end
end
accept(batch, base, now)
for _, mark in ipairs(marked) do
  call('SET', mark, 1, 'EX', MARKED_SECONDS)
end
return answers
