-- Leave word that a node adds others to its workflow, which is in another slot, while the claim of its job stands.
-- keys: claims relay mark job
-- args: token channel id node sent
-- Returns the entry and the run of the node; nothing if the claim was lost.
local claims, relay, mark, job = unpack(KEYS)
local token, channel, id, node, sent = unpack(ARGV)

if redis.call('HGET', claims, job) ~= token then return {} end
local run = redis.call('GET', mark) or ''
local entry = redis.call('XADD', relay, '*', 'extend', id, 'runs', node .. ' ' .. run, 'value', sent)
redis.call('PUBLISH', channel, 'relay')
return { entry, run }
