-- Queue a dead job again.
-- keys: dead records reasons incomplete queued crashes job
-- args: payload
-- Returns 1, or 0 if it is not dead, or its key belongs to a job that has not ended.
local dead, records, reasons, incomplete, queued, crashes, job = unpack(KEYS)
local payload = ARGV[1]

if not redis.call('ZSCORE', dead, job) or redis.call('ZSCORE', incomplete, job) then
  return 0
end
redis.call('ZREM', dead, job)
redis.call('HDEL', records, job)
redis.call('HDEL', reasons, job)
redis.call('HDEL', crashes, job)
redis.call('SET', job, payload)
redis.call('ZADD', incomplete, 0, job)
redis.call('RPUSH', queued, job)
redis.call('PUBLISH', job, 'queued')
return 1
