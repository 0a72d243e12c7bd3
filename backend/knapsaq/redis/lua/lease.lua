-- Renew a worker's sign of life, and keep SAQ's own sweeper and scheduler away from its queue.
-- keys: leases saq_sweep_lock saq_schedule_lock queued incomplete
-- args: now worker lease_ms
-- Returns the workers whose lease has run out, and 1 if a job waits to be claimed.
-- Programs of SAQ tell nobody when they delay a job, and of a limit only the worker that met it knows when it is over; here
-- an idle one hears of both.
local leases, saq_sweep_lock, saq_schedule_lock, queued, incomplete = unpack(KEYS)
local now, worker, lease_ms = unpack(ARGV)

now = time_ms(now)
redis.call('ZADD', leases, now + lease_ms, worker)
redis.call('SET', saq_sweep_lock, 1, 'PX', lease_ms)
redis.call('SET', saq_schedule_lock, 1, 'PX', lease_ms)
local due = redis.call('ZRANGEBYSCORE', incomplete, '(0', string.format('%.3f', now / 1000), 'LIMIT', 0, 1)
local base = base_of(incomplete)
local waits = #due > 0
if not waits and redis.call('EXISTS', base .. 'paused') == 0 then
  waits = redis.call('EXISTS', queued) == 1 or #redis.call('ZRANGEBYSCORE', base .. 'lanes', '-inf', now, 'LIMIT', 0, 1) > 0
end
return { redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 100), waits and 1 or 0 }
