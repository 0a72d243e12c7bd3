-- Accept jobs, all of a call in one step.
-- keys: incomplete queued claims aborts crashes | job mark
-- args: now channel | payload score once
-- A score is the due second, or with a plus the delay in seconds.
-- The mark keeps a job out while it exists; one that is to be accepted only once, ever, sets it.
-- Returns for each job 1 if it was accepted, 0 if its key belongs to a job that has not ended.
local incomplete, queued, claims, aborts, crashes = unpack(KEYS, 1, 5)
local now, channel = unpack(ARGV, 1, 2)
local OWN_KEYS = 5
local OWN_ARGS = 2
local MARKED_SECONDS = 86400
local call = redis.call
local count = (#KEYS - OWN_KEYS) / 2

local jobs, marks = {}, {}
for i = 1, count do
  jobs[i], marks[i] = KEYS[OWN_KEYS + 2 * i - 1], KEYS[OWN_KEYS + 2 * i]
end
local open = call('ZMSCORE', incomplete, unpack(jobs))
local some_marked = call('EXISTS', unpack(marks)) > 0
local some_left = call('EXISTS', claims, aborts, crashes) > 0

local function due_second(score)
  if string.sub(score, 1, 1) ~= '+' then return score end
  if now == '' then
    local time = call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return string.format('%.3f', now / 1000 + tonumber(string.sub(score, 2)))
end

local accepted, seen, taken = {}, {}, {}
local stored, scored, pushed = {}, {}, {}
local delayed = false
for i = 1, count do
  local job, at = jobs[i], OWN_ARGS + 3 * i - 2
  local payload, score, once = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  -- A job without a record cannot run; its key is free.
  if seen[job] or (open[i] and call('EXISTS', job) == 1) or (some_marked and call('EXISTS', marks[i]) == 1) then
    accepted[i] = 0
  else
    accepted[i] = 1
    seen[job] = true
    stored[#stored + 1] = job
    stored[#stored + 1] = payload
    if once == '1' then call('SET', marks[i], 1, 'EX', MARKED_SECONDS) end
    taken[#taken + 1] = job
    score = due_second(score)
    if tonumber(score) > 0 then
      delayed = true
    else
      score = 0
      pushed[#pushed + 1] = job
    end
    scored[#scored + 1] = score
    scored[#scored + 1] = job
  end
end

if #taken > 0 then
  call('MSET', unpack(stored))
  call('ZADD', incomplete, unpack(scored))
  -- What earlier jobs of these keys have left behind, as after they were ended by hand or by a program of SAQ.
  if some_left then
    for _, key in ipairs({ claims, aborts, crashes }) do
      call('HDEL', key, unpack(taken))
    end
  end
end
if #pushed > 0 then call('RPUSH', queued, unpack(pushed)) end
-- A push wakes blocked workers by itself; a new due time has to be told.
if delayed then call('PUBLISH', channel, 'due') end
return accepted
