-- Accept jobs: store their records and queue them, those that are due later by their due second; put before each script
-- that does so, behind control.lua.

-- Return a due second, 0 for now, from what a sender says: that, or with a plus the delay in seconds.
local function due_second(score, now)
  if string.sub(score, 1, 1) == '+' then return string.format('%.3f', now / 1000 + tonumber(string.sub(score, 2))) end
  return tonumber(score) > 0 and score or 0
end

-- Return the job that stands for a unique one, or false; one without a record cannot run, and stands for none.
local function standing(base, unique)
  local what, limit = unpack(unique)
  local holder = redis.pcall('GET', base .. 'unique:' .. what)
  if type(holder) ~= 'string' or redis.call('EXISTS', holder) == 0 then return false end
  if type(limit) == 'number' then return holder end
  local waits = redis.call('ZSCORE', base .. 'incomplete', holder)
  if limit == 'start' then
    waits = waits and redis.call('HEXISTS', base .. 'claims', holder) == 0 and not redis.call('LPOS', base .. 'active', holder)
  end
  return waits and holder
end

local function stand(base, unique, job)
  local what, limit = unpack(unique)
  if type(limit) == 'number' then
    redis.call('SET', base .. 'unique:' .. what, job, 'PX', string.format('%.0f', limit))
  else
    redis.call('SET', base .. 'unique:' .. what, job)
  end
end

-- Give a job its number and its control for as long as it has not ended.
local function enroll(base, job, control)
  local number = steer().next_number(base)
  redis.call('HSET', base .. 'controls', job, number .. ' ' .. cjson.encode(control))
  return number
end

-- Return the control in a record, or false.
local function control_of_record(payload)
  return string.find(payload, CONTROL_MARK, 1, true) and steer().control_in(payload) or false
end

-- End the call if a key that accepting jobs writes is of a wrong kind; for those who write something before that.
local function refuse_spoilt(base)
  for _, name in ipairs({ 'claims', 'aborts', 'crashes', 'controls', 'parked', 'orders' }) do
    redis.call('HLEN', base .. name)
  end
  for _, name in ipairs({ 'incomplete', 'ready', 'ready tenants' }) do
    redis.call('ZCARD', base .. name)
  end
  redis.call('LLEN', base .. 'queued')
end

-- Return a batch: jobs that are to be accepted together.
local function new_batch()
  return { jobs = {}, stored = {}, scored = {}, pushed = {}, controlled = {}, delayed = false }
end

-- Add a job to a batch: score as from due_second, control as from control_of_record where the caller has it.
local function admit(batch, job, payload, score, control)
  local jobs, stored, scored, pushed = batch.jobs, batch.stored, batch.scored, batch.pushed
  local n = #jobs + 1
  jobs[n] = job
  stored[2 * n - 1], stored[2 * n] = job, payload
  scored[2 * n - 1], scored[2 * n] = score, job
  if control == nil then control = control_of_record(payload) end
  if control then table.insert(batch.controlled, { job, control, score }) end
  if score ~= 0 then
    batch.delayed = true
  elseif not (control and steer().is_ranked(control)) then
    pushed[#pushed + 1] = job
  end
end

-- Accept the jobs of a batch; now as in time_ms.
local function accept(batch, base, now)
  local jobs, pushed = batch.jobs, batch.pushed
  if #jobs == 0 then return end
  -- A key of a wrong kind has to end the call before anything is written.
  if #pushed > 0 then redis.call('LLEN', base .. 'queued') end
  redis.call('ZADD', base .. 'incomplete', unpack(batch.scored))
  redis.call('MSET', unpack(batch.stored))
  -- What earlier jobs of these keys have left behind, as after they were ended by hand or by a program of SAQ.
  local controls, parked = base .. 'controls', base .. 'parked'
  local claims, aborts, crashes = base .. 'claims', base .. 'aborts', base .. 'crashes'
  if redis.call('EXISTS', claims, aborts, crashes, controls, parked) > 0 then
    for _, key in ipairs(redis.call('EXISTS', controls, parked) > 0 and { controls, parked } or {}) do
      for i, entry in ipairs(redis.call('HMGET', key, unpack(jobs))) do
        if entry then steer().end_control(base, jobs[i], time_ms(now)) end
      end
    end
    for _, key in ipairs({ claims, aborts, crashes }) do
      redis.call('HDEL', key, unpack(jobs))
    end
  end
  if #pushed > 0 then redis.call('RPUSH', base .. 'queued', unpack(pushed)) end
  for _, one in ipairs(batch.controlled) do
    local job, control, score = unpack(one)
    local number = enroll(base, job, control)
    if control.unique and not standing(base, control.unique) then stand(base, control.unique, job) end
    if score == 0 and steer().is_ranked(control) then steer().make_ready(base, job, number, control) end
  end
  -- A push wakes blocked workers by itself; a new due time has to be told.
  if batch.delayed then redis.call('PUBLISH', base .. 'wake', 'due') end
end
