-- Hand back the jobs of a worker whose lease has run out.
-- keys: queued active incomplete leases claims crashes
-- args: now worker
-- Returns the ids of the jobs that wait again, and nothing if the worker is alive after all.
local queued, active, incomplete, leases, claims, crashes = unpack(KEYS)
local now, worker = ARGV[1], ARGV[2]

local base = base_of(incomplete)
now = time_ms(now)
local expiry = redis.call('ZSCORE', leases, worker)
if expiry and tonumber(expiry) > now then
  return {}
end

local ABORTED_SECONDS = 3600
local rescued, own = {}, {}
local all = redis.call('HGETALL', claims)
for i = 1, #all, 2 do
  local job = all[i]
  if string.sub(all[i + 1], 1, #worker + 1) == worker .. ' ' then
    redis.call('HDEL', claims, job)
    local _, control = steer().control_get(base, job)
    if control then steer().release(base, job, control, now) end
    if redis.call('ZSCORE', incomplete, job) then
      own[job] = true
    elseif redis.call('TTL', job) == -1 then
      -- It ended otherwise; one that a program of SAQ was aborting keeps that status for a while.
      redis.call('EXPIRE', job, ABORTED_SECONDS)
    end
  end
end
-- From the last to the first, so that they wait in the order in which they were taken.
local running = redis.call('LRANGE', active, 0, -1)
for i = #running, 1, -1 do
  local job = running[i]
  if own[job] then
    if redis.call('LREM', active, -1, job) == 1 then
      steer().put_back(base, job)
      redis.call('HSET', crashes, job, (redis.call('HGET', crashes, job) or '') .. string.format('%d', now) .. ' ' .. worker .. '\n')
      rescued[#rescued + 1] = job
    end
  end
end
steer().let_go_due(base, now)
redis.call('ZREM', leases, worker)
return rescued
