-- Store schedules, each only if nobody has changed it since it was read.
-- keys: schedules due fires
-- args: pushes | name version record next
-- A version is the SHA-1 of the record before, or '' where there must be none. An empty record removes the schedule. Next
-- is the next due time in ms, '' for none, or 'keep'.
-- Returns for each schedule 1 if it was stored, 0 if it is another one by now.
local schedules, due, fires = unpack(KEYS)
local pushes = ARGV[1]
local OWN_ARGS = 1
local FIELDS = 4
local call = redis.call

-- A key of a wrong kind has to end the call before anything is written.
call('ZCARD', due)
call('HLEN', fires)

local answers = {}
local stored = 0
for i = 1, (#ARGV - OWN_ARGS) / FIELDS do
  local at = OWN_ARGS + FIELDS * (i - 1)
  local name, version, record, next = unpack(ARGV, at + 1, at + FIELDS)
  local before = call('HGET', schedules, name)
  local found = before and redis.sha1hex(before) or ''
  if found ~= version then
    answers[i] = 0
  else
    answers[i] = 1
    stored = stored + 1
    if record == '' then
      call('HDEL', schedules, name)
      call('HDEL', fires, name)
      call('ZREM', due, name)
    else
      call('HSET', schedules, name, record)
      if next == '' then
        call('ZREM', due, name)
      elseif next ~= 'keep' then
        call('ZADD', due, next, name)
      end
    end
  end
end
if stored > 0 then call('PUBLISH', pushes, 'edited') end
return answers
