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

-- Accept some jobs: parallel lists, scores as from due_second; now as in time_ms; controls as from control_of_record
-- where the caller has them. Returns nothing.
local function accept(base, jobs, payloads, scores, now, controls)
  if #jobs == 0 then return end
  local stored, scored, pushed, controlled = {}, {}, {}, {}
  local delayed = false
  for i, job in ipairs(jobs) do
    local payload, score, control = payloads[i], scores[i], nil
    stored[2 * i - 1], stored[2 * i] = job, payload
    scored[2 * i - 1], scored[2 * i] = score, job
    if controls then control = controls[i] else control = control_of_record(payload) end
    if control then controlled[#controlled + 1] = { job, control, score } end
    if score ~= 0 then
      delayed = true
    elseif not (control and steer().is_ranked(control)) then
      pushed[#pushed + 1] = job
    end
  end
  redis.call('MSET', unpack(stored))
  redis.call('ZADD', base .. 'incomplete', unpack(scored))
  -- What earlier jobs of these keys have left behind, as after they were ended by hand or by a program of SAQ.
  local known, parked = base .. 'controls', base .. 'parked'
  local claims, aborts, crashes = base .. 'claims', base .. 'aborts', base .. 'crashes'
  if redis.call('EXISTS', claims, aborts, crashes, known, parked) > 0 then
    for _, key in ipairs(redis.call('EXISTS', known, parked) > 0 and { known, parked } or {}) do
      for i, entry in ipairs(redis.call('HMGET', key, unpack(jobs))) do
        if entry then steer().end_control(base, jobs[i], time_ms(now)) end
      end
    end
    for _, key in ipairs({ claims, aborts, crashes }) do
      redis.call('HDEL', key, unpack(jobs))
    end
  end
  if #pushed > 0 then redis.call('RPUSH', base .. 'queued', unpack(pushed)) end
  for _, one in ipairs(controlled) do
    local job, control, score = unpack(one)
    local number = enroll(base, job, control)
    if control.unique and not standing(base, control.unique) then stand(base, control.unique, job) end
    if score == 0 and steer().is_ranked(control) then steer().make_ready(base, job, number, control) end
  end
  -- A push wakes blocked workers by itself; a new due time has to be told.
  if delayed then redis.call('PUBLISH', base .. 'wake', 'due') end
end
