-- Run the nodes of a workflow again that have failed, or were aborted or cancelled; what is done stays.
-- keys: flow states results flows
-- args: now id
-- Returns how many nodes those are, or -1 if there is no such workflow.
local flow, states, results, flows = unpack(KEYS)
local now, id = unpack(ARGV)

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
for _, part in ipairs(flow_portions(again)) do
  redis.call('HDEL', states, unpack(part))
  local errors = {}
  for i, shape in ipairs(flow_fields(flow, part, 's')) do
    waits[part[i]] = 0
    errors[i] = '!' .. part[i]
    if not shape then jobs = jobs + 1 end
  end
  redis.call('HDEL', results, unpack(errors))
end
local all, since = {}, {}
for node = 0, tonumber(redis.call('HGET', flow, 'next')) - 1 do
  all[#all + 1] = tostring(node)
end
for _, part in ipairs(flow_portions(all)) do
  for i, children in ipairs(flow_fields(flow, part, 'e')) do
    if children and state_of[part[i]] ~= 'd' then
      for child in string.gmatch(children, '%d+') do
        if not state_of[child] then
          since[child] = since[child] or tonumber(redis.call('HGET', flow, 'o' .. child) or 0)
          if tonumber(part[i]) >= since[child] then waits[child] = (waits[child] or 0) + 1 end
        end
      end
    end
  end
end
local ready, waiting = {}, {}
for node in pairs(waits) do
  waiting[#waiting + 1] = node
end
for _, part in ipairs(flow_portions(waiting)) do
  local counts, marks = {}, {}
  for i, node in ipairs(part) do
    counts[2 * i - 1], counts[2 * i], marks[i] = 'p' .. node, waits[node], 'b' .. node
  end
  redis.call('HSET', flow, unpack(counts))
  redis.call('HDEL', flow, unpack(marks))
end
for _, node in ipairs(again) do
  if waits[node] == 0 then ready[#ready + 1] = node end
end
for _, key in ipairs({ flow, states, results }) do
  redis.call('PERSIST', key)
end
redis.call('SADD', flows, id)
redis.call('HINCRBY', flow, 'left', #again)
flow_begin(id, ready, time_ms(now), true)
return jobs
