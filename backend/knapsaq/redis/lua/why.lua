-- Look why a job does not run: one moment of everything that it may wait for.
-- keys: incomplete job
-- args: now
-- Returns now in ms; its record or ''; its score or ''; its claim or ''; 1 if it is active; its lane or ''; the ms at which
-- that lane's next job is let go or ''; how many jobs of its kind are before it there, or in the queue; the ids of those
-- that hold the lane's slots; 1 if the queue is paused; the lane's strike as JSON or ''; and how many workers there are.
local incomplete, job = unpack(KEYS)
local now = ARGV[1]
local call = redis.call
local base = base_of(incomplete)
now = time_ms(now)

local _, control = steer().control_get(base, job)
local place = call('HGET', base .. 'parked', job)
local lane = place and string.sub(place, 1, 1) ~= '>' and place or ''
local due, holders, strike, ahead = '', {}, '', 0
if lane ~= '' then
  local kind, name = string.sub(lane, 1, 1), string.sub(lane, 3)
  due = not steer().is_going(base, lane) and call('ZSCORE', base .. 'lanes', lane) or ''
  ahead = call('ZRANK', steer().pool_of(base .. 'lane:' .. lane, control), job) or 0
  if kind == 'c' then holders = call('SMEMBERS', base .. 'slots:' .. name) end
  if kind == 's' then strike = call('HGET', base .. 'strikes', name) or '' end
elseif steer().is_ranked(control) then
  ahead = call('ZRANK', steer().pool_of(base .. 'ready', control), job) or call('LPOS', base .. 'queued', job) or 0
else
  ahead = call('LPOS', base .. 'queued', job)
  ahead = ahead and ahead + call('ZCARD', base .. 'ready') or 0
end
return {
  now,
  call('GET', job) or '',
  call('ZSCORE', incomplete, job) or '',
  call('HGET', base .. 'claims', job) or '',
  call('LPOS', base .. 'active', job) and 1 or 0,
  lane,
  due,
  ahead,
  holders,
  call('EXISTS', base .. 'paused'),
  strike,
  call('ZCOUNT', base .. 'leases', '(' .. string.format('%d', now), '+inf'),
}
