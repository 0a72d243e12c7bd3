-- Look which schedules are due.
-- keys: schedules due
-- args: now limit
-- Returns now in ms, the due ones as name, due time and record, at most as many as the limit says; and the next due time
-- after those, or ''.
local schedules, due = unpack(KEYS)
local now, limit = unpack(ARGV)
limit = tonumber(limit)

now = time_ms(now)

local found = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
local names, rows = {}, {}
for i = 1, #found, 2 do
  names[#names + 1] = found[i]
end
local records = #names > 0 and redis.call('HMGET', schedules, unpack(names)) or {}
for i, name in ipairs(names) do
  if records[i] then
    rows[#rows + 1] = name
    rows[#rows + 1] = found[2 * i]
    rows[#rows + 1] = records[i]
  end
end
local later = redis.call('ZRANGE', due, #names, #names, 'WITHSCORES')[2] or ''
for i, name in ipairs(names) do
  if not records[i] then redis.call('ZREM', due, name) end
end
return { now, rows, later }
