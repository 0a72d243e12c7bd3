-- Queue a dead job again.
-- keys: dead records reasons incomplete job
-- args: now payload
-- Returns 1, or 0 if it is not dead, or its key belongs to a job that has not ended.
local dead, records, reasons, incomplete, job = unpack(KEYS)
local now, payload = unpack(ARGV)

if not redis.call('ZSCORE', dead, job) or redis.call('ZSCORE', incomplete, job) then
  return 0
end
redis.call('ZREM', dead, job)
redis.call('HDEL', records, job)
redis.call('HDEL', reasons, job)
local batch = new_batch()
admit(batch, job, payload, 0)
accept(batch, base_of(incomplete), time_ms(now))
redis.call('PUBLISH', job, 'queued')
return 1
