-- Tell a workflow of a job that ended outside of our scripts, as by hand or in a worker of SAQ.
-- keys: incomplete job
-- args: now state value
-- Returns 1, or 0 if the job has not ended.
local incomplete, job = unpack(KEYS)
local now, state, value = unpack(ARGV)

if redis.call('ZSCORE', incomplete, job) then return 0 end
flow_step(job, state, value, now)
return 1
