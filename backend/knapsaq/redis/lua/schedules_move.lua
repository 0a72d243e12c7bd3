-- Move a schedule to the queue that its task has now, unless somebody has changed it since it was read.
-- keys: schedules due fires schedules_to due_to fires_to
-- args: pushes pushes_to name version record next
-- A version is the SHA-1 of the record before. Next is the next due time in ms, '' for none, or 'keep'. What has fired
-- in the old queue does not fire again in the new one; the jobs stay where they are.
-- Returns 1 if it was moved, 0 if it is another one by now or the new queue has one of the name.
local schedules, due, fires, schedules_to, due_to, fires_to = unpack(KEYS)
local pushes, pushes_to, name, version, record, next = unpack(ARGV)
local call = redis.call

-- A key of a wrong kind has to end the call before anything is written.
call('ZCARD', due_to)
call('HLEN', fires_to)

local before = call('HGET', schedules, name)
if not before or redis.sha1hex(before) ~= version or call('HEXISTS', schedules_to, name) == 1 then
  return 0
end
if next == 'keep' then next = call('ZSCORE', due, name) or '' end
local last = string.match(call('HGET', fires, name) or '', '^(%d+) ')
call('HDEL', schedules, name)
call('HDEL', fires, name)
call('ZREM', due, name)
call('HSET', schedules_to, name, record)
if last then call('HSET', fires_to, name, last .. ' \n') end
if next ~= '' then call('ZADD', due_to, next, name) end
call('PUBLISH', pushes, 'edited')
call('PUBLISH', pushes_to, 'edited')
return 1
