-- Accept jobs: store their records and queue them, those that are due later by their due second; put before each script
-- that does so, behind control.lua.

-- Return a due second, 0 for now, from what a sender says: that, or with a plus the delay in seconds.
local function due_second(score, now)
  if string.sub(score, 1, 1) == '+' then return string.format('%.3f', now / 1000 + tonumber(string.sub(score, 2))) end
  return tonumber(score) > 0 and score or 0
end

-- Give a job its number and its control for as long as it has not ended.
local function enroll(base, job, control)
  local number = next_number(base)
  redis.call('HSET', base .. 'controls', job, number .. ' ' .. cjson.encode(control))
  return number
end

-- Accept some jobs: parallel lists, scores as from due_second. Returns nothing.
local function accept(base, jobs, payloads, scores, now)
  if #jobs == 0 then return end
  local stored, scored, pushed, controlled = {}, {}, {}, {}
  local delayed = false
  for i, job in ipairs(jobs) do
    local payload, score = payloads[i], scores[i]
    stored[2 * i - 1], stored[2 * i] = job, payload
    scored[2 * i - 1], scored[2 * i] = score, job
    local control = string.find(payload, CONTROL_MARK, 1, true) and control_in(payload)
    if control then controlled[#controlled + 1] = { job, control, score } end
    if score ~= 0 then
      delayed = true
    elseif not (control and is_ranked(control)) then
      pushed[#pushed + 1] = job
    end
  end
  redis.call('MSET', unpack(stored))
  redis.call('ZADD', base .. 'incomplete', unpack(scored))
  -- What earlier jobs of these keys have left behind, as after they were ended by hand or by a program of SAQ.
  local controls, claims, aborts, crashes = base .. 'controls', base .. 'claims', base .. 'aborts', base .. 'crashes'
  if redis.call('EXISTS', claims, aborts, crashes, controls) > 0 then
    if redis.call('EXISTS', controls) == 1 then
      for i, entry in ipairs(redis.call('HMGET', controls, unpack(jobs))) do
        if entry then end_control(base, jobs[i], now) end
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
    if score == 0 and is_ranked(control) then make_ready(base, job, number, control) end
  end
  -- A push wakes blocked workers by itself; a new due time has to be told.
  if delayed then redis.call('PUBLISH', base .. 'wake', 'due') end
end
