-- Queue a job again that has ended, or that runs without one of our claims.
-- keys: queued active incomplete job
-- args: payload score
-- Returns 1, or 0 if it waits already.
local queued, active, incomplete, job = unpack(KEYS)
local payload, score = ARGV[1], ARGV[2]

if redis.call('ZSCORE', incomplete, job) and redis.call('LREM', active, 1, job) == 0 then
  return 0
end
redis.call('SET', job, payload)
if tonumber(score) > 0 then
  redis.call('ZADD', incomplete, score, job)
else
  redis.call('ZADD', incomplete, 0, job)
  redis.call('RPUSH', queued, job)
end
redis.call('PUBLISH', job, 'queued')
return 1
