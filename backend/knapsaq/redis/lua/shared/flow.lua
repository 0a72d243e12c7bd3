-- How a workflow goes on when one of its jobs has ended; put before each script in which a job can end.
-- A workflow <queue>:<key> is three hashes. saq:<queue>:flow:<key> has for node n: r its record without status, q its
-- queue if that is another, d its delay or due second, e its children (a ! behind those that run after a failure too;
-- a * alone for what runs at the workflow's end), p how many parents it waits for, s the shape of a join, which has no
-- job of its own, b that a join's parent was bad, o of a job that was replaced and so became a join, the number from
-- which on its parents count; and left, how many nodes have not ended; bad, how many ends of the workflow were no
-- success; stop, why it is revoked; state and ended, once it has ended; ttl; on_success and on_failure, the nodes that
-- run then; next, result, tasks, names, queues and t for those who look; g how often n was begun in another slot.
-- ...:states has each node's state: q queued or running, d done, f failed, a aborted, c cancelled; none is waiting.
-- ...:results has what each node returned, as JSON, and under !n why it failed.
local FLOW_AT_ONCE = 500
local FLOW_LEAST_SECONDS = 60
local FLOW_RELAYED_AT_ONCE = 100
local FLOW_RUN_SECONDS = 86400

local function flow_key(id)
  local home, key = string.match(id, '^([^:]+):(.+)$')
  return 'saq:' .. home .. ':flow:' .. key, home
end

local function flow_tag(queue)
  return string.match(queue, '^[^{]*{([^}]+)}') or queue
end

-- Tell whether a queue's keys cannot be reached in a step of the workflow: it is in a cluster, as its mark says, and the
-- queue in another slot.
local function flow_is_apart(id, queue)
  local home, mark = string.match(id, '^([^:]+):(.)')
  return mark == '~' and flow_tag(home) ~= flow_tag(queue)
end

-- Leave word in a queue for one in another slot; see relay.py.
local function flow_relay(queue, ...)
  redis.call('XADD', 'saq:' .. queue .. ':relay', '*', ...)
  redis.call('PUBLISH', 'saq:' .. queue .. ':wake', 'relay')
end

-- Return lists in parts of some hundred items: unpack takes no more than some thousands, and no call gets too long.
local function flow_portions(items)
  local parts = {}
  for first = 1, #items, FLOW_AT_ONCE do
    parts[#parts + 1] = { unpack(items, first, math.min(first + FLOW_AT_ONCE - 1, #items)) }
  end
  return parts
end

-- Return fields of nodes: letter by letter for each node.
local function flow_fields(flow, nodes, ...)
  local fields, letters = {}, { ... }
  for _, node in ipairs(nodes) do
    for _, letter in ipairs(letters) do
      fields[#fields + 1] = letter .. node
    end
  end
  return redis.call('HMGET', flow, unpack(fields))
end

-- Forget what jobs have left behind that ran before; returns which of them have not ended.
local function flow_forget(base, jobs)
  redis.call('ZREM', base .. 'dead', unpack(jobs))
  local scores = redis.call('ZMSCORE', base .. 'incomplete', unpack(jobs))
  local open, ended = {}, {}
  for i, job in ipairs(jobs) do
    if scores[i] then open[job] = true else ended[#ended + 1] = job end
  end
  if #ended > 0 then
    for _, name in ipairs({ 'dead:records', 'dead:reasons' }) do
      redis.call('HDEL', base .. name, unpack(ended))
    end
  end
  return open
end

-- Accept some jobs of one queue: {job, record, delay or due second}.
local function flow_enqueue(queue, accepted, now, again)
  local base = 'saq:' .. queue .. ':'
  local ids = {}
  for i, one in ipairs(accepted) do
    ids[i] = one[1]
  end
  local open = again and flow_forget(base, ids) or {}
  local queued = '{"status":"queued","queued":' .. string.format('%d', now) .. ','
  local batch = new_batch()
  for _, one in ipairs(accepted) do
    local job, record, due = one[1], one[2], one[3] or '0'
    if not open[job] then
      local score = due_second(due, now)
      local stamp = string.sub(due, 1, 1) == '+' and '"scheduled":' .. score .. ',' or ''
      admit(batch, job, queued .. stamp .. string.sub(record, 2), score)
    end
  end
  accept(batch, base, now)
end

-- Leave word to begin nodes in other slots, each with the number of that run.
local function flow_send(id, nodes)
  local flow, home = flow_key(id)
  for first = 1, #nodes, FLOW_RELAYED_AT_ONCE do
    local runs = {}
    for i = first, math.min(first + FLOW_RELAYED_AT_ONCE - 1, #nodes) do
      runs[#runs + 1] = nodes[i] .. ' ' .. redis.call('HINCRBY', flow, 'g' .. nodes[i], 1)
    end
    flow_relay(home, 'begin', id, 'runs', table.concat(runs, ' '))
  end
end

-- Accept the jobs of nodes.
local function flow_accept(id, nodes, now, again)
  local flow, home = flow_key(id)
  local apart = {}
  for _, part in ipairs(flow_portions(nodes)) do
    local values, marks, by_queue = flow_fields(flow, part, 'r', 'q', 'd'), {}, {}
    for i, node in ipairs(part) do
      local record, queue, due = values[3 * i - 2], values[3 * i - 1] or home, values[3 * i]
      if queue ~= home and flow_is_apart(id, queue) then
        apart[#apart + 1] = node
      else
        by_queue[queue] = by_queue[queue] or {}
        table.insert(by_queue[queue], { 'saq:job:' .. queue .. ':flow:' .. id .. ':' .. node, record, due })
      end
      marks[#marks + 1] = node
      marks[#marks + 1] = 'q'
    end
    redis.call('HSET', flow .. ':states', unpack(marks))
    for queue, accepted in pairs(by_queue) do
      flow_enqueue(queue, accepted, now, again)
    end
  end
  flow_send(id, apart)
end

-- Let a workflow expire that has ended, once what runs at its end has ended too.
local function flow_close(id)
  local flow, home = flow_key(id)
  if redis.call('HEXISTS', flow, 'state') == 0 then return end
  for _, node in ipairs({ redis.call('HGET', flow, 'on_success'), redis.call('HGET', flow, 'on_failure') }) do
    if node and redis.call('HGET', flow .. ':states', node) == 'q' then return end
  end
  local ttl = tonumber(redis.call('HGET', flow, 'ttl') or FLOW_LEAST_SECONDS)
  for _, key in ipairs({ flow, flow .. ':states', flow .. ':results' }) do
    if ttl ~= 0 then redis.call('EXPIRE', key, math.max(ttl, FLOW_LEAST_SECONDS)) end
  end
  redis.call('SREM', 'saq:' .. home .. ':flows', id)
end

-- All nodes have ended: say so, and run what is to run then.
local function flow_end(id, now)
  local flow = flow_key(id)
  local bad = tonumber(redis.call('HGET', flow, 'bad') or 0) > 0
  local state = bad and (redis.call('HEXISTS', flow, 'stop') == 1 and 'aborted' or 'failed') or 'complete'
  redis.call('HSET', flow, 'state', state, 'ended', string.format('%d', now))
  redis.call('PUBLISH', flow, state)
  local follows = { complete = 'on_success', failed = 'on_failure' }
  local node = follows[state] and redis.call('HGET', flow, follows[state])
  if node and redis.call('HGET', flow .. ':states', node) ~= 'q' then
    redis.call('HDEL', flow .. ':results', '!' .. node)
    flow_accept(id, { node }, now, true)
  end
  flow_close(id)
end

-- Go on from nodes that have ended (pairs of node and whether it was a success), and accept those in ready as well.
local function flow_go_on(id, work, ready, now, again)
  local flow = flow_key(id)
  local states = flow .. ':states'
  local stopped = redis.call('HEXISTS', flow, 'stop') == 1
  local ended, bad, at = 0, 0, 1
  local function close(node, good, state)
    redis.call('HSET', states, node, state)
    work[#work + 1] = { node, good }
  end
  local function parent_ended(child, node, good, after_failure)
    if redis.call('HEXISTS', states, child) == 1 then
      return -- cancelled, or done before another parent was run again
    elseif redis.call('HEXISTS', flow, 's' .. child) == 1 then
      if tonumber(node) < tonumber(redis.call('HGET', flow, 'o' .. child) or 0) then return end
      if not good then redis.call('HSET', flow, 'b' .. child, 1) end
      if redis.call('HINCRBY', flow, 'p' .. child, -1) <= 0 then
        local all_good = redis.call('HEXISTS', flow, 'b' .. child) == 0
        close(child, all_good, all_good and 'd' or 'c')
      end
    elseif stopped or not (good or after_failure) then
      close(child, false, 'c')
    elseif redis.call('HINCRBY', flow, 'p' .. child, -1) <= 0 then
      ready[#ready + 1] = child
    end
  end
  while work[at] do
    local node, good = work[at][1], work[at][2]
    local children = redis.call('HGET', flow, 'e' .. node)
    local at_end = children == '*'
    if children then
      for child, mark in string.gmatch(children, '(%d+)(!?)') do
        parent_ended(child, node, good, mark == '!')
      end
    elseif not good then
      bad = bad + 1
    end
    if at_end then flow_close(id) else ended = ended + 1 end
    at = at + 1
  end
  if bad > 0 then redis.call('HINCRBY', flow, 'bad', bad) end
  flow_accept(id, ready, now, again)
  if ended > 0 and redis.call('HINCRBY', flow, 'left', -ended) <= 0 then flow_end(id, now) end
end

-- Begin nodes that wait for nobody: jobs are accepted, joins are done at once.
local function flow_begin(id, nodes, now, again)
  local flow = flow_key(id)
  local work, ready = {}, {}
  for _, part in ipairs(flow_portions(nodes)) do
    for i, shape in ipairs(flow_fields(flow, part, 's')) do
      if shape then
        redis.call('HSET', flow .. ':states', part[i], 'd')
        work[#work + 1] = { part[i], true }
      else
        ready[#ready + 1] = part[i]
      end
    end
  end
  flow_go_on(id, work, ready, now, again)
end

-- A node has ended, in a run of it; nothing happens if its workflow knows, or the node runs once more by now.
-- A workflow whose keys somebody has spoilt harms nobody else.
local function flow_hear(id, node, run, state, value, now)
  return pcall(function()
    local flow = flow_key(id)
    if redis.call('HGET', flow .. ':states', node) ~= 'q' then return end
    if run ~= '' and redis.call('HGET', flow, 'g' .. node) ~= run then return end
    redis.call('HSET', flow .. ':states', node, state)
    redis.call('HSET', flow .. ':results', (state == 'd' and '' or '!') .. node, value)
    flow_go_on(id, { { node, state == 'd' } }, {}, time_ms(now))
  end)
end

-- A job has ended; nothing happens if it belongs to no workflow.
local function flow_step(job, state, value, now)
  local queue, key, id, node = string.match(job, '^saq:job:(.-):(flow:([^:]+:[^:]+):(%d+))$')
  if not id then return false end
  if not flow_is_apart(id, queue) then return flow_hear(id, node, '', state, value, now) end
  return pcall(function()
    local mark = 'saq:' .. queue .. ':run:' .. key
    local run = redis.call('GET', mark) or ''
    redis.call('EXPIRE', mark, FLOW_RUN_SECONDS)
    flow_relay(queue, 'end', id, 'runs', node .. ' ' .. run, 'state', state, 'value', value)
  end)
end
