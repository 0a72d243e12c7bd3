-- Begin a workflow, whose nodes have been written: one step.
-- keys: flow states flows
-- args: now id count | field
-- Returns 1. Fields are names and values of the last part of what is written; then come, as many as count says, the
-- nodes that wait for nobody.
local flow, states, flows = unpack(KEYS)
local now, id, count = unpack(ARGV, 1, 3)
local OWN_ARGS = 3
local AT_ONCE = 1000

local last = #ARGV - tonumber(count)
for first = OWN_ARGS + 1, last, AT_ONCE do
  redis.call('HSET', flow, unpack(ARGV, first, math.min(first + AT_ONCE - 1, last)))
end
redis.call('PERSIST', flow)
redis.call('DEL', states)
redis.call('SADD', flows, id)
local nodes = {}
for i = last + 1, #ARGV do
  nodes[#nodes + 1] = ARGV[i]
end
flow_begin(id, nodes, time_ms(now))
return 1
