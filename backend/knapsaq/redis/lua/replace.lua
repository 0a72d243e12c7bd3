-- Put a call in the place of the one that stands for it, unless that has begun or ended.
-- keys: incomplete job
-- args: now payload score what
-- Score is as in enqueue.lua; what is what is unique about the job. One that goes on waiting keeps its place.
-- Returns 1, or 0 if the job does not stand for it any more, or has begun.
local incomplete, job = unpack(KEYS)
local now, payload, score, what = unpack(ARGV)
local call = redis.call
local base = base_of(incomplete)
now = time_ms(now)

local before = call('ZSCORE', incomplete, job)
local begun = call('HEXISTS', base .. 'claims', job) == 1 or call('LPOS', base .. 'active', job)
if not before or begun or call('GET', base .. 'unique:' .. what) ~= job then return 0 end

score = due_second(score, now)
local control = steer().control_in(payload)
local number, old = steer().control_get(base, job)
local parked = call('HEXISTS', base .. 'parked', job) == 1
if old and control and tonumber(before) == 0 and score == 0 then
  call('SET', job, payload)
  if parked or old.priority ~= control.priority or old.fair ~= control.fair then
    -- It may wait elsewhere now; one that was parked is looked at again, and if need be parked by the number it has.
    call('LREM', base .. 'queued', 1, job)
    steer().withdraw(base, job, old, now)
    steer().make_ready(base, job, number, control, parked)
  end
  call('HSET', base .. 'controls', job, number .. ' ' .. cjson.encode(control))
else
  -- A delayed one is not in the queue, which may be too long to look through with each call of a storm.
  if tonumber(before) == 0 then call('LREM', base .. 'queued', 1, job) end
  steer().withdraw(base, job, old, now)
  call('HDEL', base .. 'controls', job)
  local batch = new_batch()
  admit(batch, job, payload, score, control)
  accept(batch, base, now)
end
steer().let_go_due(base, now)
steer().show_ready(base)
call('PUBLISH', job, 'queued')
return 1
