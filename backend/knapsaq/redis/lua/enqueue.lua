-- Accept jobs, all of a call in one step.
-- keys: incomplete queued claims aborts crashes | job mark
-- args: now channel | payload score once
-- A score is the due second, or with a plus the delay in seconds.
-- The mark keeps a job out while it exists; one that is to be accepted only once, ever, sets it.
-- Returns for each job 1 if it was accepted, 0 if its key belongs to a job that has not ended.
local incomplete, queued, claims, aborts, crashes = unpack(KEYS, 1, 5)
local now, channel = unpack(ARGV, 1, 2)
local accepted = {}
local delayed = false
local some_left = redis.call('EXISTS', claims, aborts, crashes) > 0
local MARKED_SECONDS = 86400

for i = 1, (#KEYS - 5) / 2 do
  local job, mark = KEYS[4 + 2 * i], KEYS[5 + 2 * i]
  local payload, score, once = ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2]
  -- A job without a record cannot run; its key is free.
  local taken = (redis.call('ZSCORE', incomplete, job) and redis.call('EXISTS', job) == 1)
    or redis.call('EXISTS', mark) == 1
  if taken then
    accepted[i] = 0
  else
    accepted[i] = 1
    redis.call('SET', job, payload)
    if once == '1' then redis.call('SET', mark, 1, 'EX', MARKED_SECONDS) end
    -- What an earlier job of this key has left behind, as after it was ended by hand or by a program of SAQ.
    if some_left then
      redis.call('HDEL', claims, job)
      redis.call('HDEL', aborts, job)
      redis.call('HDEL', crashes, job)
    end
    if string.sub(score, 1, 1) == '+' then
      if now == '' then
        local time = redis.call('TIME')
        now = time[1] * 1000 + math.floor(time[2] / 1000)
      end
      score = string.format('%.3f', now / 1000 + tonumber(string.sub(score, 2)))
    end
    if tonumber(score) > 0 then
      redis.call('ZADD', incomplete, score, job)
      delayed = true
    else
      redis.call('ZADD', incomplete, 0, job)
      redis.call('RPUSH', queued, job)
    end
  end
end

-- A push wakes blocked workers by itself; a new due time has to be told.
if delayed then
  redis.call('PUBLISH', channel, 'due')
end
return accepted
