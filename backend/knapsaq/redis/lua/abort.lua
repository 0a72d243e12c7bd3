-- End jobs on purpose: at once those that wait, through its worker one that runs, if such are meant too.
-- keys: queued active incomplete aborts crashes | job
-- args: reason terminate running channel now | aborted_payload ttl aborting_payload
-- Returns for each job 'ended' (nothing changed), 'aborted' or 'aborting'.
local queued, active, incomplete, aborts, crashes = unpack(KEYS, 1, 5)
local reason, terminate, running, channel, now = unpack(ARGV, 1, 5)
local OWN_KEYS = 5
local OWN_ARGS = 5
local KEPT_SECONDS = 3600
local call = redis.call
local base = base_of(incomplete)
now = time_ms(now)

-- SAQ's own workers look at the status, ours hear of the order with their next call. One to terminate stands.
local function tell_worker(job, payload)
  call('SET', job, payload)
  if terminate == '1' or string.sub(call('HGET', aborts, job) or '', 1, 1) ~= '1' then
    call('HSET', aborts, job, terminate .. ' ' .. reason)
  end
  call('EXPIRE', aborts, KEPT_SECONDS)
  call('PUBLISH', job, 'aborting')
end

local function finish(job, score, payload, ttl)
  if tonumber(score) == 0 then call('LREM', queued, 1, job) end -- a delayed one is not there, and the queue may be long
  call('ZREM', incomplete, job)
  call('HDEL', crashes, job)
  call('HDEL', aborts, job)
  steer().end_control(base, job, now)
  if ttl > 0 then
    call('SET', job, payload, 'EX', ttl)
  elseif ttl == 0 then
    call('SET', job, payload)
  else
    call('DEL', job)
  end
  call('PUBLISH', job, 'aborted')
  flow_step(job, 'a', cjson.encode(reason), now)
end

local answers, told = {}, false
for i = 1, #KEYS - OWN_KEYS do
  local job, at = KEYS[OWN_KEYS + i], OWN_ARGS + 3 * i - 2
  local score = call('ZSCORE', incomplete, job)
  if not score then
    answers[i] = 'ended'
  elseif call('LPOS', active, job) then
    answers[i] = running == '1' and 'aborting' or 'ended'
    if running == '1' then
      told = true
      tell_worker(job, ARGV[at + 2])
    end
  else
    answers[i] = 'aborted'
    finish(job, score, ARGV[at], tonumber(ARGV[at + 1]))
  end
end
if told then call('PUBLISH', channel, 'abort') end
steer().let_go_due(base, now)
steer().show_ready(base)
return answers
