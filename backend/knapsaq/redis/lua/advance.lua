-- Settle what has ended, promote what is due, claim what may run: one step.
-- keys: queued active incomplete leases claims aborts crashes | job
-- args: now worker want claim lease_ms last_chance | token verb payload number status
-- Returns now in ms, the next due time in seconds or '', 1 or 0 for each settlement, the claimed jobs as id, payload,
-- crashes; and the claimed jobs that somebody wants aborted as id, reason.
-- A claim, worker and token, is the job's entry in the one hash of all claims; a settlement counts only while its
-- token is there. A worker without a lease gets one before it claims, so that somebody watches every claim's owner.
-- Verbs: stamp, finish (number is the ttl), retry and release (number is the delay in seconds; a released job without
-- one goes to the front). Of the jobs with as many crashes as last_chance says a worker gets one at a time: the next
-- crash tells for sure which job it was. The others wait a moment.
local queued, active, incomplete, leases, claims, aborts, crashes = unpack(KEYS, 1, 7)
local now, worker, want, claim, lease_ms, last_chance = unpack(ARGV, 1, 6)
want, last_chance = tonumber(want), tonumber(last_chance)
local DUE_AT_ONCE = 1000
local APART_SECONDS = 0.1
local ABORTED_SECONDS = 3600

if now == '' then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
else
  now = tonumber(now)
end

local some_crashed = redis.call('EXISTS', crashes) == 1
local some_aborts = redis.call('EXISTS', aborts) == 1

local function forget(job)
  redis.call('HDEL', claims, job)
  if some_crashed then redis.call('HDEL', crashes, job) end
  if some_aborts then redis.call('HDEL', aborts, job) end
end

-- Keep an ended job for so many seconds: 0 is for ever, below 0 not at all.
local function keep(job, record, seconds)
  record = record or redis.call('GET', job)
  if seconds > 0 then
    redis.call('SET', job, record, 'EX', seconds)
  elseif seconds == 0 then
    redis.call('SET', job, record)
  else
    redis.call('DEL', job)
  end
end

local function is_aborting(job)
  local readable, record = pcall(cjson.decode, redis.call('GET', job) or '')
  return readable and type(record) == 'table' and record['status'] == 'aborting'
end

local settled = {}
for i = 1, #KEYS - 7 do
  local job = KEYS[7 + i]
  local token, verb, payload, number, status = unpack(ARGV, 5 * i + 2, 5 * i + 6)
  if redis.call('HGET', claims, job) ~= token then
    settled[i] = 0
  elseif not redis.call('ZSCORE', incomplete, job) then
    -- Somebody finished it by hand, or a program of SAQ aborted it and waits for the worker to say so.
    settled[i] = 0
    if verb ~= 'stamp' then
      forget(job)
      if is_aborting(job) then
        keep(job, verb == 'finish' and payload, verb == 'finish' and tonumber(number) or ABORTED_SECONDS)
        redis.call('PUBLISH', job, 'aborted')
      end
    end
  elseif verb == 'stamp' then
    settled[i] = redis.call('LPOS', active, job) and 1 or 0
    if settled[i] == 1 then
      redis.call('SET', job, payload)
      redis.call('PUBLISH', job, status)
    end
  elseif redis.call('LREM', active, 1, job) == 0 then
    -- A program of SAQ has taken it from us, and it waits again.
    settled[i] = 0
    redis.call('HDEL', claims, job)
  else
    settled[i] = 1
    if verb == 'finish' then
      redis.call('ZREM', incomplete, job)
      forget(job)
      keep(job, payload, tonumber(number))
    else
      redis.call('HDEL', claims, job)
      redis.call('SET', job, payload)
      if tonumber(number) > 0 then
        redis.call('ZADD', incomplete, string.format('%.3f', now / 1000 + number), job)
      else
        redis.call('ZADD', incomplete, 0, job)
        redis.call(verb == 'release' and 'LPUSH' or 'RPUSH', queued, job)
      end
    end
    redis.call('PUBLISH', job, status)
  end
end

-- An open interval: jobs that wait or run have the score 0.
local due = redis.call('ZRANGEBYSCORE', incomplete, '(0', string.format('%.3f', now / 1000), 'LIMIT', 0, DUE_AT_ONCE)
for _, job in ipairs(due) do
  redis.call('ZADD', incomplete, 0, job)
  redis.call('RPUSH', queued, job)
end

local function crashes_of(job)
  return some_crashed and tonumber(redis.call('HGET', crashes, job) or 0) or 0
end

local claimed = {}
local ids = want > 0 and redis.call('LPOP', queued, want) or nil
if ids then
  local payloads = redis.call('MGET', unpack(ids))
  local scores = redis.call('ZMSCORE', incomplete, unpack(ids))
  local held = redis.call('HMGET', claims, unpack(ids))
  local taken, entries, seen = {}, {}, {}
  local lease = redis.call('ZSCORE', leases, worker)
  if not lease or tonumber(lease) <= now then
    redis.call('ZADD', leases, now + lease_ms, worker)
  end
  local suspected, last_ones = false, false
  for _, job in ipairs(ids) do
    last_ones = last_ones or crashes_of(job) == last_chance
  end
  if last_ones then
    local all = redis.call('HGETALL', claims)
    for i = 1, #all, 2 do
      suspected = suspected or (crashes_of(all[i]) == last_chance and string.sub(all[i + 1], 1, #worker + 1) == worker .. ' ')
    end
  end
  for i, job in ipairs(ids) do
    local count = crashes_of(job)
    if not payloads[i] then
      redis.call('ZREM', incomplete, job)
      forget(job)
    elseif not scores[i] or (held[i] and redis.call('LPOS', active, job)) or seen[job] then
      -- Ended, or in the queue twice and running.
      if not scores[i] then forget(job) end
    elseif count == last_chance and suspected then
      redis.call('ZADD', incomplete, string.format('%.3f', now / 1000 + APART_SECONDS), job)
    else
      suspected = suspected or count == last_chance
      seen[job] = true
      taken[#taken + 1] = job
      entries[#entries + 1] = job
      entries[#entries + 1] = claim
      claimed[#claimed + 1] = job
      claimed[#claimed + 1] = payloads[i]
      claimed[#claimed + 1] = count
    end
  end
  if #taken > 0 then
    redis.call('RPUSH', active, unpack(taken))
    redis.call('HSET', claims, unpack(entries))
  end
end

local wanted_aborts = {}
if some_aborts then
  local reasons = redis.call('HGETALL', aborts)
  for i = 1, #reasons, 2 do
    if string.sub(redis.call('HGET', claims, reasons[i]) or '', 1, #worker + 1) == worker .. ' ' then
      wanted_aborts[#wanted_aborts + 1] = reasons[i]
      wanted_aborts[#wanted_aborts + 1] = reasons[i + 1]
    end
  end
end

local next_due = redis.call('ZRANGEBYSCORE', incomplete, '(0', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2] or ''
return { now, next_due, settled, claimed, wanted_aborts }
