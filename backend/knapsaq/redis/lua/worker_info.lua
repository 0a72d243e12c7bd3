-- Write what a worker says of itself, as SAQ does.
-- keys: stats info
-- args: now payload ttl
-- Returns 1.
local stats, info = unpack(KEYS)
local now, payload, ttl = unpack(ARGV)

redis.call('SET', info, payload, 'EX', ttl)
redis.call('ZREMRANGEBYSCORE', stats, 0, now)
redis.call('ZADD', stats, now + ttl * 1000, info)
redis.call('EXPIRE', stats, ttl)
return 1
