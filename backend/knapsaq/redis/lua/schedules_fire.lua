-- Fire schedules: accept the jobs of due times that have come, and set the next ones, all in one step.
-- keys: schedules due fires incomplete | job
-- args: now worker pushes | name due version next overlap moment note payload score
-- Each row is a due time, the moment, with its job, or with a note why it gives none. The rows of a schedule follow each
-- other and count only while its due time and its record, by its SHA-1, are those that the caller has seen. With the
-- overlap 0 a moment is skipped while the schedule's newest job has not ended. A score is the second at which the job
-- may run. A due time at or before the newest that fired, by less than a day, has fired already.
-- Returns now in ms, the next due time of all schedules or '', and for each row 1 if it was done, 0 if it was refused,
-- 2 if it was skipped.
local schedules, due, fires, incomplete = unpack(KEYS, 1, 4)
local now, worker, pushes = unpack(ARGV, 1, 3)
local OWN_KEYS = 4
local OWN_ARGS = 3
local FIELDS = 9
local SHOWN = 10
local DAY_MS = 86400000
local SKIPPED = 'skipped: the previous run has not ended'
local call = redis.call

local base = base_of(incomplete)
now = time_ms(now)

-- A key of a wrong kind has to end the call before anything is written.
call('HLEN', schedules)
call('ZCARD', due)
call('HLEN', fires)
refuse_spoilt(base)

-- A job without a record cannot run; its key is free.
local function is_open(job)
  return call('ZSCORE', incomplete, job) and call('EXISTS', job) == 1
end

local answers, batch = {}, new_batch()
local fired = false
-- Of the schedule whose rows are being looked at: is it as the caller says, its newest job, its lines.
local current, allowed, last_moment, last_job, lines

local function keep_lines()
  if not allowed then return end
  local cut, at = {}, 1
  for _ = 1, SHOWN do
    local stop = string.find(lines, '\n', at, true)
    if not stop then break end
    cut[#cut + 1] = string.sub(lines, at, stop)
    at = stop + 1
  end
  call('HSET', fires, current, last_moment .. ' ' .. last_job .. '\n' .. table.concat(cut))
end

local function look_at(name, expected, version, next)
  local score, record = call('ZSCORE', due, name), call('HGET', schedules, name)
  allowed = score and record and tonumber(score) == tonumber(expected) and redis.sha1hex(record) == version
  if not allowed then return end
  fired = true
  call('ZADD', due, next, name)
  last_moment, last_job, lines = string.match(call('HGET', fires, name) or '', '^(%d+) ([^\n]*)\n(.*)$')
  last_moment, last_job, lines = last_moment or '0', last_job or '', lines or ''
end

for i = 1, #KEYS - OWN_KEYS do
  local job, at = KEYS[OWN_KEYS + i], OWN_ARGS + FIELDS * (i - 1)
  local name, expected, version, next, overlap, moment, note, payload, score = unpack(ARGV, at + 1, at + FIELDS)
  if name ~= current then
    keep_lines()
    current = name
    look_at(name, expected, version, next)
  end
  local back = allowed and tonumber(last_moment) - tonumber(moment)
  local known = allowed and back >= 0 and back < DAY_MS
    and (payload == '' or call('EXISTS', job) == 1 or string.find('\n' .. lines, '\n' .. moment .. ' + ', 1, true))
  if not allowed or known then
    answers[i] = 0
  elseif payload == '' then
    answers[i] = 1
    lines = moment .. ' - ' .. note .. '\n' .. lines
  elseif overlap == '0' and last_job ~= '' and is_open(last_job) then
    answers[i] = 2
    lines = moment .. ' - ' .. SKIPPED .. '\n' .. lines
  else
    answers[i] = 1
    last_moment, last_job = back >= 0 and back < DAY_MS and last_moment or moment, job
    lines = moment .. ' + ' .. job .. '\n' .. lines
    if not is_open(job) then admit(batch, job, payload, tonumber(score) > now / 1000 and score or 0) end
  end
end
keep_lines()

accept(batch, base, now)
local earliest = call('ZRANGE', due, 0, 0, 'WITHSCORES')[2] or ''
if fired then call('PUBLISH', pushes, 'fired ' .. earliest .. ' ' .. now .. ' ' .. worker) end
return { now, earliest, answers }
