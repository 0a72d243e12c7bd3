-- Renew a worker's sign of life, and keep SAQ's own sweeper and scheduler away from its queue.
-- keys: leases saq_sweep_lock saq_schedule_lock
-- args: now worker lease_ms
-- Returns the workers whose lease has run out.
local leases, saq_sweep_lock, saq_schedule_lock = unpack(KEYS)
local now, worker, lease_ms = ARGV[1], ARGV[2], ARGV[3]

if now == '' then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
redis.call('ZADD', leases, now + lease_ms, worker)
redis.call('SET', saq_sweep_lock, 1, 'PX', lease_ms)
redis.call('SET', saq_schedule_lock, 1, 'PX', lease_ms)
return redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 100)
