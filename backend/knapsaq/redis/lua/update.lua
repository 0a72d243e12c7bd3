-- Write a job's record, unless it has ended since the record was read.
-- keys: incomplete job
-- args: payload ended status
-- Returns 1, or 0 if nothing was written.
local incomplete, job = KEYS[1], KEYS[2]
local payload, ended, status = ARGV[1], ARGV[2], ARGV[3]

if redis.call('ZSCORE', incomplete, job) then
  redis.call('SET', job, payload)
elseif ended == '1' and redis.call('EXISTS', job) == 1 then
  redis.call('SET', job, payload, 'KEEPTTL')
else
  return 0
end
redis.call('PUBLISH', job, status)
return 1
