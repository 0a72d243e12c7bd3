-- Accept jobs, all of a call in one step.
-- keys: incomplete queued aborts | job abort_mark
-- args: channel | payload score once
-- Returns for each job 1 if it was accepted, 0 if its key belongs to a job that has not ended.
local incomplete, queued, aborts = unpack(KEYS, 1, 3)
local channel = ARGV[1]
local accepted = {}
local delayed = false
local some_aborts = redis.call('EXISTS', aborts) == 1

for i = 1, (#KEYS - 3) / 2 do
  local job, abort_mark = KEYS[2 + 2 * i], KEYS[3 + 2 * i]
  local payload, score, once = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
  local taken = redis.call('ZSCORE', incomplete, job)
    or redis.call('EXISTS', abort_mark) == 1
    or (once == '1' and redis.call('EXISTS', job) == 1)
  if taken then
    accepted[i] = 0
  else
    accepted[i] = 1
    redis.call('SET', job, payload)
    -- A worker of SAQ that ends an aborted job leaves the reason behind.
    if some_aborts then redis.call('HDEL', aborts, job) end
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
