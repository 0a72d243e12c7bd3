-- End a job on purpose: at once if it waits, through its worker if it runs.
-- keys: queued active incomplete aborts crashes job
-- args: reason aborted_payload ttl aborting_payload channel now
-- Returns 'ended' (nothing changed), 'aborted' or 'aborting'.
local queued, active, incomplete, aborts, crashes, job = unpack(KEYS)
local reason, aborted_payload, ttl, aborting_payload, channel, now = unpack(ARGV)
local KEPT_SECONDS = 3600

if not redis.call('ZSCORE', incomplete, job) then
  return 'ended'
end
if redis.call('LPOS', active, job) then
  -- SAQ's own workers look at the status, ours hear of the reason with their next call.
  redis.call('SET', job, aborting_payload)
  redis.call('HSET', aborts, job, reason)
  redis.call('EXPIRE', aborts, KEPT_SECONDS)
  redis.call('PUBLISH', job, 'aborting')
  redis.call('PUBLISH', channel, 'abort')
  return 'aborting'
end

redis.call('LREM', queued, 1, job)
redis.call('ZREM', incomplete, job)
redis.call('HDEL', crashes, job)
redis.call('HDEL', aborts, job)
if tonumber(ttl) > 0 then
  redis.call('SET', job, aborted_payload, 'EX', ttl)
elseif tonumber(ttl) == 0 then
  redis.call('SET', job, aborted_payload)
else
  redis.call('DEL', job)
end
redis.call('PUBLISH', job, 'aborted')
flow_step(job, 'a', cjson.encode(reason), now)
return 'aborted'
