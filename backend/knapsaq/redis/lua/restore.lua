-- Take a strike back, and let the jobs go that wait for it, some hundred in a call.
-- keys: incomplete
-- args: now id limit
-- Returns 1 if more wait, else 0.
local incomplete = KEYS[1]
local now, id, limit = unpack(ARGV)
local base = base_of(incomplete)
local lane = base .. 'lane:s:' .. id

redis.call('HDEL', base .. 'strikes', id)
for _ = 1, tonumber(limit) do
  local job = steer().pool_pick(base, lane, false)
  if not job then break end
  redis.call('HDEL', base .. 'parked', job)
  local number, control = steer().control_get(base, job)
  steer().make_ready(base, job, number, control)
end
steer().forget_numbers(base)
return steer().pool_waits(lane) and 1 or 0
