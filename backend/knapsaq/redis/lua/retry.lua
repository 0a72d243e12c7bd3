-- Queue a job again that has ended, or that runs without one of our claims.
-- keys: queued active incomplete claims aborts crashes dead records reasons job
-- args: payload score
-- Returns 1, or 0 if it waits already or one of our workers runs it.
local queued, active, incomplete, claims, aborts, crashes, dead, records, reasons, job = unpack(KEYS)
local payload, score = ARGV[1], ARGV[2]

if redis.call('ZSCORE', incomplete, job) then
  if redis.call('HEXISTS', claims, job) == 1 or redis.call('LREM', active, 1, job) == 0 then
    return 0
  end
end
redis.call('HDEL', claims, job)
redis.call('HDEL', crashes, job)
redis.call('HDEL', aborts, job)
redis.call('ZREM', dead, job)
redis.call('HDEL', records, job)
redis.call('HDEL', reasons, job)
redis.call('SET', job, payload)
if tonumber(score) > 0 then
  redis.call('ZADD', incomplete, score, job)
else
  redis.call('ZADD', incomplete, 0, job)
  redis.call('RPUSH', queued, job)
end
redis.call('PUBLISH', job, 'queued')
return 1
