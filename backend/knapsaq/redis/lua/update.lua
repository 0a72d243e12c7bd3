-- Write a job's record, unless it has ended since the record was read, or the writer has lost its claim.
-- keys: incomplete claims job
-- args: payload ended status token
-- Returns 1, or 0 if nothing was written.
local incomplete, claims, job = unpack(KEYS)
local payload, ended, status, token = unpack(ARGV)

if ended == '0' and token ~= '' and redis.call('HGET', claims, job) ~= token then
  return 0
end
if redis.call('ZSCORE', incomplete, job) then
  redis.call('SET', job, payload)
elseif ended == '1' and redis.call('EXISTS', job) == 1 then
  redis.call('SET', job, payload, 'KEEPTTL')
else
  return 0
end
redis.call('PUBLISH', job, status)
return 1
