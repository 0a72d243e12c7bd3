-- Queue a job again that has ended, or that runs without one of our claims.
-- keys: active incomplete claims dead records reasons job
-- args: now payload score
-- Returns 1, or 0 if it waits already or one of our workers runs it.
local active, incomplete, claims, dead, records, reasons, job = unpack(KEYS)
local now, payload, score = unpack(ARGV)

if redis.call('ZSCORE', incomplete, job) then
  if redis.call('HEXISTS', claims, job) == 1 or redis.call('LREM', active, 1, job) == 0 then
    return 0
  end
end
redis.call('ZREM', dead, job)
redis.call('HDEL', records, job)
redis.call('HDEL', reasons, job)
now = time_ms(now)
local batch = new_batch()
admit(batch, job, payload, due_second(score, now))
accept(batch, base_of(incomplete), now)
redis.call('PUBLISH', job, 'queued')
return 1
