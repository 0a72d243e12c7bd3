-- Settle what has ended, promote what is due, claim what may run: one step.
-- keys: queued active incomplete leases claims aborts crashes dead records reasons | job
-- args: now worker want claim lease_ms last_chance | head payload
-- Below 0, want counts only while the worker renews its lease in time.
-- Returns now in ms, the next due time in seconds or '', 1 or 0 for each settlement, the claimed jobs as id, payload,
-- deaths; the claimed jobs that somebody wants aborted as id, reason; 1 if the queue is paused; and 1 if there is more to
-- look at than one call may.
-- A claim, worker and token, is the job's entry in the one hash of all claims; a settlement counts only while its
-- token is there; its head is verb, number, status and token with spaces between. A worker without a lease gets one before
-- it claims, so that somebody watches every claim's owner.
-- Verbs: stamp, finish and bury (number is the ttl), retry, release and snooze (number is the delay in seconds; a
-- released job without one goes to the front, and a snoozed one leaves its crashes behind). A buried job is finished, and
-- its record as it was goes to the dead letters; the payload's first line is the reason. Behind finish and bury of a
-- workflow's job stand /, its state and the length of what belongs to the job, which the payload has before what the
-- workflow gets to know. Of the jobs with as many crashes as last_chance says a worker gets one at a time: the next crash
-- tells which job it was, as a rule. The others wait a moment.
local queued, active, incomplete, leases, claims, aborts, crashes, dead, records, reasons = unpack(KEYS, 1, 10)
local now, worker, want, claim, lease_ms, last_chance = unpack(ARGV, 1, 6)
want, last_chance = tonumber(want), tonumber(last_chance)
local OWN_KEYS = 10
local OWN_ARGS = 6
local DUE_AT_ONCE = 1000
local LOOKED_AT_ONCE = 10000
local APART_SECONDS = 0.1
local SPOILT_SECONDS = 5
local ABORTED_SECONDS = 3600
local LEFT_AT_LEAST = 0.7 -- of a lease, which is renewed five times in its length
local STEERED_AT_ONCE = 300
local MOVED_AT_ONCE = 50
local MOVED_APART_MS = 100
local call = redis.call
local base = base_of(incomplete)
now = time_ms(now)

local lease = tonumber(call('ZSCORE', leases, worker) or 0)
if want < 0 then
  -- It has waited here for a push: its worker may be dead by now, or stand still, and is late with its lease.
  want = lease > now + LEFT_AT_LEAST * lease_ms and -want or 0
end

-- Steered: whether more than the order in which jobs came decides which may run.
local some_crashed, some_aborts, steered = false, false, false
local steering = { base .. 'controls', base .. 'parked', base .. 'strikes', base .. 'paused' }
if call('EXISTS', crashes, aborts, unpack(steering)) > 0 then -- mostly there is none of these
  some_crashed, some_aborts = call('HLEN', crashes) > 0, call('HLEN', aborts) > 0
  steered = call('EXISTS', unpack(steering)) > 0
end
-- A key of a wrong kind has to end the call before anything is popped; that of the leases has been asked already.
local some_claimed = call('HLEN', claims) > 0
call('LLEN', active)
call('LLEN', queued)
if steered then
  for _, name in ipairs({ 'controls', 'parked', 'orders', 'strikes', 'weights' }) do
    call('HLEN', base .. name)
  end
  for _, name in ipairs({ 'ready', 'ready tenants', 'lanes' }) do
    call('ZCARD', base .. name)
  end
end

local function forget(job)
  if some_crashed then call('HDEL', crashes, job) end
  if some_aborts then call('HDEL', aborts, job) end
  if steered then steer().end_control(base, job, now) end
end

-- A job that runs no more gives back what it held; one that has its control only since it ran is held to it from now on.
local function give_back(job, payload)
  local _, control
  if steered then _, control = steer().control_get(base, job) end
  if control then
    steer().release(base, job, control, now)
  else
    control = control_of_record(payload)
    if control then
      enroll(base, job, control)
      steered = true
    end
  end
end

local function push_back(job)
  if steered then
    local number, control = steer().control_get(base, job)
    steer().make_ready(base, job, number, control)
  else
    call('RPUSH', queued, job)
  end
end

-- Keep an ended job for so many seconds: 0 is for ever, below 0 not at all.
local function keep(job, record, seconds)
  record = record or call('GET', job)
  if seconds > 0 then
    call('SET', job, record, 'EX', seconds)
  elseif seconds == 0 then
    call('SET', job, record)
  else
    call('DEL', job)
  end
end

local function is_aborting(job)
  local readable, record = pcall(cjson.decode, call('GET', job) or '')
  return readable and type(record) == 'table' and record['status'] == 'aborting'
end

local function bury(job, reason)
  call('ZADD', dead, now, job)
  call('HSET', records, job, call('GET', job) or '')
  call('HSET', reasons, job, reason .. '\n' .. (some_crashed and call('HGET', crashes, job) or ''))
end

local settled, unclaimed, ended, released = {}, {}, {}, {}
local went_on = false -- a workflow
local count = #KEYS - OWN_KEYS
if count > 0 then
  local held = call('HMGET', claims, unpack(KEYS, OWN_KEYS + 1))
  local open = call('ZMSCORE', incomplete, unpack(KEYS, OWN_KEYS + 1))
  local head, verb, number, status, token, state, size
  for i = 1, count do
    local job, at = KEYS[OWN_KEYS + i], OWN_ARGS + 2 * i - 1
    local payload = ARGV[at + 1]
    if ARGV[at] ~= head then
      head = ARGV[at]
      verb, number, status, token = string.match(head, '^(%S+) (%S+) (%S+) (.+)$')
      number = tonumber(number)
      state = nil
      if string.find(verb, '/', 1, true) then
        verb, state, size = string.match(verb, '^(%a+)/(%a)(%d+)$')
        size = tonumber(size)
      end
    end
    local told
    if state then
      payload, told = string.sub(payload, 1, size), string.sub(payload, size + 1)
    end
    settled[i] = 0
    if held[i] ~= token then
      -- Somebody else has it now.
    elseif not open[i] then
      -- Somebody finished it by hand, or a program of SAQ aborted it and waits for the worker to say so.
      if verb ~= 'stamp' then
        unclaimed[#unclaimed + 1] = job
        forget(job)
        if is_aborting(job) then
          keep(job, verb == 'finish' and payload, verb == 'finish' and number or ABORTED_SECONDS)
          call('PUBLISH', job, 'aborted')
          went_on = true
          flows().flow_step(job, 'a', '"a program of SAQ aborted it"', now)
        end
      end
    elseif verb == 'stamp' then
      if call('LPOS', active, job) then
        settled[i] = 1
        call('SET', job, payload)
        call('PUBLISH', job, status)
      end
    else
      unclaimed[#unclaimed + 1] = job
      -- Where there is nothing to remove, a program of SAQ has taken it from us, and it waits again.
      if call('LREM', active, 1, job) == 1 then
        settled[i] = 1
        if verb == 'finish' or verb == 'bury' then
          if verb == 'bury' then
            local line_end = string.find(payload, '\n', 1, true)
            bury(job, string.sub(payload, 1, line_end - 1))
            payload = string.sub(payload, line_end + 1)
          end
          ended[#ended + 1] = job
          forget(job)
          keep(job, payload, number)
          if state then
            went_on = true
            flows().flow_step(job, state, told, now)
          end
        else
          call('SET', job, payload)
          give_back(job, payload)
          if verb == 'snooze' and some_crashed then call('HDEL', crashes, job) end
          -- One that is to be aborted waits for nothing: whoever claims it next hears of that.
          if number > 0 and not (some_aborts and call('HEXISTS', aborts, job) == 1) then
            call('ZADD', incomplete, string.format('%.3f', now / 1000 + number), job)
          else
            call('ZADD', incomplete, 0, job)
            if verb ~= 'retry' then
              released[#released + 1] = job
            else
              push_back(job)
            end
          end
        end
        call('PUBLISH', job, status)
      else
        give_back(job, '')
      end
    end
  end
  -- To the front, in the order in which they came.
  for i = #released, 1, -1 do
    if steered then steer().put_back(base, released[i]) else call('LPUSH', queued, released[i]) end
  end
  if #unclaimed > 0 then call('HDEL', claims, unpack(unclaimed)) end
  if #ended > 0 then call('ZREM', incomplete, unpack(ended)) end
  -- The next nodes of workflows may have come with controls.
  steered = steered or (went_on and call('EXISTS', base .. 'controls') == 1)
end

-- An open interval: jobs that wait or run have the score 0.
local next_due = call('ZRANGEBYSCORE', incomplete, '(0', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2] or ''
if next_due ~= '' and tonumber(next_due) <= now / 1000 then
  local due = call('ZRANGEBYSCORE', incomplete, '(0', string.format('%.3f', now / 1000), 'LIMIT', 0, DUE_AT_ONCE)
  for _, job in ipairs(due) do
    call('ZADD', incomplete, 0, job)
    push_back(job)
  end
  next_due = call('ZRANGEBYSCORE', incomplete, '(0', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2] or ''
end

-- The deaths of workers that ran a job, a line each.
local function deaths_of(job)
  return some_crashed and call('HGET', crashes, job) or ''
end

local function is_suspect(job)
  return select(2, string.gsub(deaths_of(job), '\n', '')) == last_chance
end

local paused = steered and call('EXISTS', base .. 'paused') or 0
local strikes = steered and steer().strikes_of(base) or {}
local charged = {}

-- Take jobs that may run, the best ones first; nil if there are none.
local function take()
  if not steered then return call('LPOP', queued, want) or nil end
  steer().let_go_due(base, now)
  steer().rank_heads(base)
  local ids = {}
  if call('EXISTS', base .. 'ready', base .. 'ready tenants') == 0 then
    ids = call('LRANGE', queued, 0, want - 1)
    if #ids == 0 then return nil end
    local entries, plain = call('HMGET', base .. 'controls', unpack(ids)), 1
    while plain < #ids and not steer().is_ranked(select(2, steer().control_of(entries[plain + 1]))) do
      plain = plain + 1
    end
    return call('LPOP', queued, plain)
  end
  while #ids < want do
    local job = steer().pool_pick(base, base .. 'ready', true, queued)
    if not job then break end
    ids[#ids + 1] = job
    charged[job] = true
    steer().rank_heads(base)
  end
  return #ids > 0 and ids or nil
end

local moves = {}

-- A job went from a lane to another: after some of them the lane's others come a moment later, as they may be many.
local function postpone(lane)
  moves[lane] = (moves[lane] or 0) + 1
  if moves[lane] >= MOVED_AT_ONCE then call('ZADD', base .. 'lanes', 'XX', 'GT', now + MOVED_APART_MS, lane) end
end

-- Whether a job has to wait for a limit; it is parked then, and counted otherwise.
local function has_to_wait(job, payload)
  local number, control = steer().control_get(base, job)
  local place = call('HGET', base .. 'parked', job)
  local from = place and string.sub(place, 1, 1) == '>' and string.sub(place, 2) or nil
  if place and not from then
    if call('ZSCORE', steer().pool_of(base .. 'lane:' .. place, control), job) then return true end -- it was in the queue twice
    call('HDEL', base .. 'parked', job)
  end
  local over = (some_aborts and call('HEXISTS', aborts, job) == 1) or (control and steer().is_over(payload, now))
  local strike, lane, due = not over and steer().struck_by(strikes, payload), nil, nil
  if strike then
    lane = 's:' .. strike
  elseif control and not over then
    lane, due = steer().blocked_by(base, control, from, now)
  end
  if from then call('ZREM', base .. 'lanes', from) end
  if lane then
    if charged[job] then steer().refund(base, control) end
    steer().park(base, job, number or steer().next_number(base), control, lane, due)
    if from and from ~= lane then
      steer().rearm(base, from, control, now)
      postpone(from)
    end
    return true
  end
  if control and not over then
    call('HSET', claims, job, claim) -- by which others see that it holds its slots
    steer().consume(base, job, control, now)
  end
  if from then
    call('HDEL', base .. 'parked', job)
    steer().rearm(base, from, control, now)
  end
  return false
end

-- As has_to_wait; one that waits for a key of a wrong kind is looked at again, until somebody has put that right.
local function is_held_back(job, payload)
  local readable, waits = pcall(has_to_wait, job, payload)
  if readable then return waits end
  call('HDEL', claims, job)
  call('ZADD', incomplete, string.format('%.3f', now / 1000 + SPOILT_SECONDS), job)
  next_due = nil
  return true
end

local claimed = {}
local looked_at = 0
local stopped_early = false
if paused == 1 then want = 0 end
local ids = want > 0 and take() or nil
while ids do
  local payloads = call('MGET', unpack(ids))
  local scores = call('ZMSCORE', incomplete, unpack(ids))
  local held = some_claimed and call('HMGET', claims, unpack(ids)) or {}
  local taken, entries, seen = {}, {}, {}
  if lease <= now then
    lease = now + lease_ms
    call('ZADD', leases, lease, worker)
  end
  local suspected, last_ones = false, false
  for _, job in ipairs(some_crashed and ids or {}) do
    last_ones = last_ones or is_suspect(job)
  end
  if last_ones then
    local all = call('HGETALL', claims)
    for i = 1, #all, 2 do
      suspected = suspected or (is_suspect(all[i]) and string.sub(all[i + 1], 1, #worker + 1) == worker .. ' ')
    end
  end
  for i, job in ipairs(ids) do
    local suspect = last_ones and is_suspect(job)
    if not payloads[i] then
      call('ZREM', incomplete, job)
      call('HDEL', claims, job)
      forget(job)
      flows().flow_step(job, 'f', '"its record is gone"', now)
      steered = steered or call('EXISTS', base .. 'controls') == 1
    elseif not scores[i] or (held[i] and call('LPOS', active, job)) or seen[job] then
      -- Ended, or in the queue twice and running.
      if not scores[i] then
        call('HDEL', claims, job)
        forget(job)
      end
    elseif suspect and suspected then
      next_due = nil
      if steered then steer().withdraw(base, job, select(2, steer().control_get(base, job)), now) end
      call('ZADD', incomplete, string.format('%.3f', now / 1000 + APART_SECONDS), job)
    elseif not (steered and is_held_back(job, payloads[i])) then
      suspected = suspected or suspect
      seen[job] = true
      taken[#taken + 1] = job
      entries[#entries + 1] = job
      entries[#entries + 1] = claim
      claimed[#claimed + 1] = job
      claimed[#claimed + 1] = payloads[i]
      claimed[#claimed + 1] = deaths_of(job)
    end
  end
  if #taken > 0 then
    call('RPUSH', active, unpack(taken))
    call('HSET', claims, unpack(entries))
    some_claimed = true
  end
  -- Where nobody can run an id, the next one takes its place.
  looked_at = looked_at + #ids
  local enough = looked_at >= (steered and STEERED_AT_ONCE or LOOKED_AT_ONCE)
  stopped_early = enough and #taken < want
  want = (steered or #taken < #ids) and not enough and want - #taken or 0
  ids = want > 0 and take() or nil
end

local wanted_aborts = {}
if some_aborts then
  local wanted = call('HGETALL', aborts)
  for i = 1, #wanted, 2 do
    if string.sub(call('HGET', claims, wanted[i]) or '', 1, #worker + 1) == worker .. ' ' then
      wanted_aborts[#wanted_aborts + 1] = wanted[i]
      wanted_aborts[#wanted_aborts + 1] = wanted[i + 1]
    end
  end
end

if not next_due then
  next_due = call('ZRANGEBYSCORE', incomplete, '(0', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
end
if steered then
  -- What may run and finds no room here is to be seen by others.
  steer().let_go_due(base, now)
  steer().show_ready(base)
  steer().forget_numbers(base)
  next_due = steer().sooner(next_due, call('ZRANGE', base .. 'lanes', 0, 0, 'WITHSCORES')[2])
end
return { now, next_due, settled, claimed, wanted_aborts, paused, stopped_early and call('EXISTS', queued) or 0 }
