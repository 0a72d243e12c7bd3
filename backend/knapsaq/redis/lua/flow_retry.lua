-- Run the nodes of a workflow again that have failed, or were aborted or cancelled; what is done stays.
-- keys: flow states results flows
-- args: now id
-- Returns how many nodes those are, or -1 if there is no such workflow.
local flow, states, results, flows = unpack(KEYS)
local now, id = unpack(ARGV)
local AT_ONCE = 1000

if redis.call('EXISTS', flow) == 0 then return -1 end
local known = redis.call('HGETALL', states)
local state_of, again = {}, {}
for i = 1, #known, 2 do
  state_of[known[i]] = known[i + 1]
end
local follow_ups = {}
for _, node in ipairs(redis.call('HMGET', flow, 'on_success', 'on_failure')) do
  if node then follow_ups[node] = true end
end
for node, state in pairs(state_of) do
  if not follow_ups[node] and (state == 'f' or state == 'a' or state == 'c') then
    again[#again + 1] = node
    state_of[node] = nil
  end
end
if #again == 0 then return 0 end
table.sort(again, function(a, b) return tonumber(a) < tonumber(b) end)

redis.call('HDEL', flow, 'stop', 'state', 'ended', 'bad')
for node in pairs(follow_ups) do
  if state_of[node] ~= 'q' then
    redis.call('HDEL', states, node)
    redis.call('HDEL', results, node, '!' .. node)
  end
end
-- What has not ended waits for each parent that is not done.
local waits, jobs = {}, 0
for _, node in ipairs(again) do
  waits[node] = 0
  if redis.call('HEXISTS', flow, 's' .. node) == 0 then jobs = jobs + 1 end
  redis.call('HDEL', states, node)
  redis.call('HDEL', results, '!' .. node)
end
local count = tonumber(redis.call('HGET', flow, 'next'))
for first = 0, count - 1, AT_ONCE do
  local fields = {}
  for node = first, math.min(first + AT_ONCE, count) - 1 do
    fields[#fields + 1] = 'e' .. node
  end
  for i, children in ipairs(redis.call('HMGET', flow, unpack(fields))) do
    if children and state_of[tostring(first + i - 1)] ~= 'd' then
      for child in string.gmatch(children, '%d+') do
        local counts = first + i - 1 >= tonumber(redis.call('HGET', flow, 'o' .. child) or 0)
        if not state_of[child] and counts then waits[child] = (waits[child] or 0) + 1 end
      end
    end
  end
end
local ready = {}
for node, parents in pairs(waits) do
  redis.call('HSET', flow, 'p' .. node, parents)
  redis.call('HDEL', flow, 'b' .. node)
end
for _, node in ipairs(again) do
  if waits[node] == 0 then ready[#ready + 1] = node end
end
for _, key in ipairs({ flow, states, results }) do
  redis.call('PERSIST', key)
end
redis.call('SADD', flows, id)
redis.call('HINCRBY', flow, 'left', #again)
flow_begin(id, ready, flow_ms(now), true)
return jobs
