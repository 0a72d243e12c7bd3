-- Add nodes to a workflow from one of its nodes that runs, and perhaps put them in that node's place.
-- keys: flow states | claims job
-- args: now id node token nodes shape ends count | field
-- Returns 'added', 'lost' (the claim), 'revoked' or 'ended' (the workflow; it is one of those that run at its end), or
-- 'replaced' (the node was, by an earlier attempt).
-- With a shape, the node becomes a join of so many ends. Fields are as in flow_start.lua. Without claims, which then are
-- in another slot and were looked at there, the token is the run of the node; what has been added stays as it is.
local flow, states = unpack(KEYS)
local claims, job = KEYS[3], KEYS[4]
local now, id, node, token, nodes, shape, ends, count = unpack(ARGV, 1, 8)
local OWN_ARGS = 8
local AT_ONCE = 1000

if claims then
  if redis.call('HGET', claims, job) ~= token then return 'lost' end
elseif redis.call('HEXISTS', flow, ARGV[OWN_ARGS + 1]) == 1 then
  return 'added'
elseif token ~= '' and redis.call('HGET', flow, 'g' .. node) ~= token then
  return 'lost'
end
if redis.call('HGET', states, node) ~= 'q' then
  return redis.call('HEXISTS', flow, 's' .. node) == 1 and 'replaced' or 'lost'
end
if redis.call('HEXISTS', flow, 'stop') == 1 then return 'revoked' end
if redis.call('HGET', flow, 'e' .. node) == '*' then return 'ended' end

local last = #ARGV - tonumber(count)
for first = OWN_ARGS + 1, last, AT_ONCE do
  redis.call('HSET', flow, unpack(ARGV, first, math.min(first + AT_ONCE - 1, last)))
end
redis.call('HINCRBY', flow, 'left', nodes)
local begun = {}
for i = last + 1, #ARGV do
  begun[#begun + 1] = ARGV[i]
end
if shape ~= '' then
  redis.call('HSET', flow, 's' .. node, shape, 'p' .. node, ends)
  redis.call('HDEL', states, node)
  if tonumber(ends) == 0 then begun[#begun + 1] = node end
end
flow_begin(id, begun, time_ms(now))
return 'added'
