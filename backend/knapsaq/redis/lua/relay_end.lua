-- Tell a workflow of the end of a node whose job was in another slot.
-- keys: flow
-- args: now id node run state value
-- Returns 1.
local flow = unpack(KEYS)
local now, id, node, run, state, value = unpack(ARGV)

flow_hear(id, node, run, state, value, now)
return 1
