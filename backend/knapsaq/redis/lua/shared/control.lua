-- Flow control: in what order jobs run, and which of them have to wait for a limit; put before each script that queues,
-- claims or ends jobs, which asks for a function as steer().name: all are made as the first one is asked for, since to
-- make them takes longer than the rest of a call that needs none. base is the prefix of a queue's keys, saq:<queue>: in
-- front of all names below.
-- A job with a control, from its record, is controlled until it ends: controls has its number, by which it stays in
-- order, and the control as JSON. A job that has to wait for a limit is parked in that limit's lane: r: and a name for a
-- rate, c: and a name for a concurrency, s: and a number for a strike. parked has the lane of each such job; a > before
-- it says that the job was let go, and stands among those that may run until a worker takes it. lanes has the lanes by
-- the millisecond at which the next job is to be let go: inf while the one before is on its way, so that they keep their
-- order; as it is taken, it says when. Of a lane that is not there the one says so that gives back a slot.
-- A pool is a set of jobs in order: those without a tenant in the sorted set of its name, those of a tenant in
-- <pool> tenant <tenant>, in <pool> tenants the tenants by how much they have had, and in <pool> turns how many turns each
-- of them has had since its jobs began to wait; no name has a blank of its own. Each lane is a pool, and ready, which has
-- the jobs with a priority or a tenant that may run. All others that may run are in queued, and one is there as long as
-- any may run, as idle workers look there alone.
-- Whatever records and keys hold, nothing here raises behind a pop: what makes no sense is as if it were not there.
-- Sources: rates by GCRA, ITU-T I.371 (1996); tenants by stride scheduling, Waldspurger and Weihl (1995).
local BAND = 1099511627776 -- 2^40: so many jobs may have a number before two priorities meet
local CLASSES = 10
local OTHERS_EACH = 10 -- one in so many jobs is not of the highest priority that waits
local LIMIT_KEPT_MS = 60000
local TURNS_KEPT_SECONDS = 3600
local MOST = 9007199254740992 -- 2^53: up to there whole numbers are exact
local HOLDERS_CHECKED = 100
local LET_GO_AT_ONCE = 500

local function is_name(value)
  return type(value) == 'string' and value ~= '' and not string.find(value, '%s')
end

local function is_number(value)
  return type(value) == 'number' and value >= 1 and value <= MOST
end

-- Return those entries of a list in which the fields are of the kinds that are expected; records may hold anything.
local function limits_of(list, fields)
  local kept = {}
  for _, limit in ipairs(type(list) == 'table' and list or {}) do
    local good = type(limit) == 'table' and is_name(limit[1])
    for i = 2, fields do
      good = good and is_number(limit[i])
    end
    if good then kept[#kept + 1] = { unpack(limit, 1, fields) } end
  end
  return kept
end

-- Return what is unique about a job and for how long, or nil.
local function unique_of(given)
  if type(given) ~= 'table' or not is_name(given[1]) then return nil end
  local limit = given[2]
  return (limit == 'start' or limit == 'end' or is_number(limit)) and { given[1], limit } or nil
end

-- Return a control in which everything is of the right kind, or nil.
local function checked(given)
  if type(given) ~= 'table' then return nil end
  return {
    priority = math.max(0, math.min(math.floor(tonumber(given['priority']) or 0), CLASSES - 1)),
    fair = is_name(given['fair']) and given['fair'] or nil,
    rates = limits_of(given['rates'], 3),
    slots = limits_of(given['slots'], 2),
    unique = unique_of(given['unique']),
  }
end

-- Return a record and what is ours in it, each of which may be nil.
local function record_in(payload)
  local readable, record = pcall(cjson.decode, payload)
  if not readable or type(record) ~= 'table' then return nil end
  local meta = record['meta']
  local own = type(meta) == 'table' and meta['knapsaq']
  return record, type(own) == 'table' and own or nil
end

-- Return the control in a record, or nil.
local function control_in(payload)
  if not string.find(payload, CONTROL_MARK, 1, true) then return nil end
  local _, own = record_in(payload)
  return own and checked(own['control'])
end

-- Return a job's number and its control, from an entry of controls; nil where nobody can read it.
local function control_of(entry)
  local number, text = string.match(entry or '', '^(%d+) (.*)$')
  if not number then return nil end
  local readable, given = pcall(cjson.decode, text)
  local control = readable and checked(given)
  if not control then return nil end
  return math.min(tonumber(number), BAND - 1), control
end

local function control_get(base, job)
  return control_of(redis.call('HGET', base .. 'controls', job))
end

local function next_number(base)
  return redis.call('HINCRBY', base .. 'orders', 'last', 1)
end

-- Whether it is not in queued that a job waits once it may run.
local function is_ranked(control)
  return control ~= nil and (control.priority > 0 or control.fair ~= nil)
end

local function pool_of(pool, control)
  return control and control.fair and pool .. ' tenant ' .. control.fair or pool
end

local function pool_add(pool, job, number, control)
  local priority = control and control.priority or 0
  redis.call('ZADD', pool_of(pool, control), (CLASSES - 1 - priority) * BAND + number, job)
  local tenants = pool .. ' tenants'
  if control and control.fair and not redis.call('ZSCORE', tenants, control.fair) then
    -- Who comes anew is as far as the one whose turn it is: time in which nothing waited is not made up for.
    redis.call('ZADD', tenants, redis.call('ZRANGE', tenants, 0, 0, 'WITHSCORES')[2] or 0, control.fair)
  end
end

local function forget_tenant(pool, tenant)
  redis.call('ZREM', pool .. ' tenants', tenant)
  redis.call('HDEL', pool .. ' turns', tenant)
end

-- Whether any job is in a pool; tenants without jobs are forgotten once it is their turn.
local function pool_waits(pool)
  if redis.call('EXISTS', pool) == 1 then return true end
  local tenant = redis.call('ZRANGE', pool .. ' tenants', 0, 0)[1]
  while tenant do
    if tenant ~= '' and redis.call('EXISTS', pool .. ' tenant ' .. tenant) == 1 then return true end
    forget_tenant(pool, tenant)
    tenant = redis.call('ZRANGE', pool .. ' tenants', 0, 0)[1]
  end
  redis.call('DEL', pool .. ' turns')
  return false
end

-- Take the first job of a tenant. Of ten of its turns one is that of a priority, each in its turn, or of those below it:
-- the first job of the lowest priority is taken within 100 turns.
local function first_of(pool, tenant, counted, queued)
  local key, job = tenant == '' and pool or pool .. ' tenant ' .. tenant, nil
  local turn = counted and redis.call('HINCRBY', pool .. ' turns', tenant, 1) or 1
  if turn % OTHERS_EACH == 0 then
    local class = math.floor(turn / OTHERS_EACH) % CLASSES
    job = redis.call('ZRANGEBYSCORE', key, (CLASSES - 1 - class) * BAND, '+inf', 'LIMIT', 0, 1)[1]
    if job then redis.call('ZREM', key, job) end
    job = job or (queued and redis.call('LPOP', queued))
  end
  return job or redis.call('ZPOPMIN', key)[1] or (queued and redis.call('LPOP', queued)) or nil
end

local function weight_of(base, tenant)
  local weight = tonumber(redis.call('HGET', base .. 'weights', tenant) or 1)
  return weight and weight >= 1e-6 and weight <= MOST and weight or 1
end

-- Take the job of a pool whose turn it is, or return nil; with queued among those without a tenant. A turn that is not
-- counted costs its tenant nothing.
local function pool_pick(base, pool, counted, queued)
  local tenants = pool .. ' tenants'
  local first = redis.call('ZRANGE', tenants, 0, 0, 'WITHSCORES')
  if not first[1] then return first_of(pool, '', counted, queued) end
  if redis.call('EXISTS', pool, queued or pool) > 0 and not redis.call('ZSCORE', tenants, '') then
    redis.call('ZADD', tenants, first[2], '')
  end
  while true do
    local tenant, passed = unpack(redis.call('ZRANGE', tenants, 0, 0, 'WITHSCORES'))
    if not tenant then return nil end
    local job = first_of(pool, tenant, counted, tenant == '' and queued)
    if job then
      if counted then redis.call('ZADD', tenants, passed + 1 / weight_of(base, tenant), tenant) end
      return job
    end
    forget_tenant(pool, tenant)
  end
end

-- Take back what a tenant was charged for a job that does not run yet.
local function refund(base, control)
  local tenant = control and control.fair or ''
  redis.call('ZADD', base .. 'ready tenants', 'XX', 'INCR', -1 / weight_of(base, tenant), tenant)
end

-- Move jobs away from the head of queued that belong to ready: one was there to be seen. None stays behind another job.
local function rank_heads(base)
  local queued = base .. 'queued'
  local job = redis.call('LINDEX', queued, 0)
  while job do
    local number, control = control_get(base, job)
    if not is_ranked(control) then return end
    redis.call('LPOP', queued)
    pool_add(base .. 'ready', job, number, control)
    job = redis.call('LINDEX', queued, 0)
  end
end

-- Put a job among those that may run.
local function make_ready(base, job, number, control, to_front)
  local queued = base .. 'queued'
  if not is_ranked(control) then
    if to_front then rank_heads(base) end
    redis.call(to_front and 'LPUSH' or 'RPUSH', queued, job)
  elseif redis.call('EXISTS', queued) == 0 then
    redis.call('RPUSH', queued, job)
  else
    pool_add(base .. 'ready', job, number, control)
  end
end

-- Put a job that has been taken already before all others of its kind.
local function put_back(base, job)
  local number, control = control_get(base, job)
  make_ready(base, job, number, control, true)
end

-- Return the millisecond from which on a rate allows a job.
local function rate_due(base, rate, now)
  local name, interval_us, burst = unpack(rate, 1, 3)
  local reached_us = tonumber(redis.call('GET', base .. 'rate:' .. name) or '')
  if not reached_us then return now end
  return math.max(now, math.ceil((reached_us - (burst - 1) * interval_us) / 1000))
end

-- Whether a concurrency has a slot left; what dead claims hold counts no more.
local function has_slot(base, slot)
  local name, most = unpack(slot, 1, 2)
  local holders = base .. 'slots:' .. name
  local held = redis.call('SCARD', holders)
  if held < most then return true end
  local some = redis.call('SRANDMEMBER', holders, HOLDERS_CHECKED)
  for i, claim in ipairs(redis.call('HMGET', base .. 'claims', unpack(some))) do
    if not claim then held = held - redis.call('SREM', holders, some[i]) end
  end
  return held < most
end

-- Whether a job that was let go from a lane is still on its way.
local function is_going(base, lane)
  return tonumber(redis.call('ZSCORE', base .. 'lanes', lane) or 0) == math.huge
end

local function arm(base, lane, due)
  if not is_going(base, lane) then redis.call('ZADD', base .. 'lanes', due, lane) end
end

-- Say when a lane's next job is to be let go, by the control of one that was let go from it. Where that tells nothing,
-- as limits have changed meanwhile, it is now: the next job sees for itself.
local function rearm(base, lane, control, now)
  redis.call('ZREM', base .. 'lanes', lane)
  if not pool_waits(base .. 'lane:' .. lane) then return end
  local kind, name, due = string.sub(lane, 1, 1), string.sub(lane, 3), now
  if kind == 's' and redis.call('HEXISTS', base .. 'strikes', name) == 1 then return end
  for _, rate in ipairs(kind == 'r' and control and control.rates or {}) do
    if rate[1] == name then due = rate_due(base, rate, now) end
  end
  for _, slot in ipairs(kind == 'c' and control and control.slots or {}) do
    if slot[1] == name and not has_slot(base, slot) then return end
  end
  redis.call('ZADD', base .. 'lanes', due, lane)
end

-- Return the lane in which a job has to wait, and the millisecond at which that is over if it is known; nil if it may run.
-- One that was let go waits behind nobody else: two lanes would hand their jobs to each other for ever.
local function blocked_by(base, control, let_go, now)
  for _, rate in ipairs(control.rates) do
    local lane = 'r:' .. rate[1]
    if not let_go and pool_waits(base .. 'lane:' .. lane) then return lane end
    local due = rate_due(base, rate, now)
    if due > now then return lane, due end
  end
  for _, slot in ipairs(control.slots) do
    local lane = 'c:' .. slot[1]
    if not let_go and pool_waits(base .. 'lane:' .. lane) then return lane end
    if not has_slot(base, slot) then return lane end
  end
end

-- Whether a job may not be started any more, so that it is taken at once and ended; as Job.expired says.
local function is_over(payload, now)
  if not string.find(payload, '"expires_', 1, true) then return false end
  local record, own = record_in(payload)
  if not own then return false end
  local finish, length = tonumber(own['expires_at']), tonumber(own['expires_in'])
  if length then
    local from = math.max(tonumber(record['queued']) or 0, (tonumber(record['scheduled']) or 0) * 1000)
    finish = math.floor(from + length * 1000)
  end
  return finish ~= nil and finish > 0 and finish < now
end

local function strikes_of(base)
  local strikes, found = {}, redis.call('HGETALL', base .. 'strikes')
  for i = 1, #found, 2 do
    local readable, rule = pcall(cjson.decode, found[i + 1])
    if readable and type(rule) == 'table' then strikes[#strikes + 1] = { found[i], rule } end
  end
  return strikes
end

-- Return the strike that a job has to wait for, or nil.
local function struck_by(strikes, payload)
  if #strikes == 0 then return nil end
  local record = record_in(payload)
  if not record then return nil end
  local arguments = type(record['kwargs']) == 'table' and record['kwargs'] or {}
  for _, strike in ipairs(strikes) do
    local id, rule = unpack(strike)
    local fits = rule.parameter == nil or arguments[rule.parameter] == rule.value
    if rule.task == record['function'] and fits then return id end
  end
end

local function park(base, job, number, control, lane, due)
  pool_add(base .. 'lane:' .. lane, job, number, control)
  redis.call('HSET', base .. 'parked', job, lane)
  if due then arm(base, lane, due) end
end

-- Count a job that begins.
local function consume(base, job, control, now)
  for _, rate in ipairs(control.rates) do
    local name, interval_us = unpack(rate, 1, 2)
    local before_us = tonumber(redis.call('GET', base .. 'rate:' .. name) or '') or 0
    local reached_us = math.max(before_us, now * 1000) + interval_us
    local kept_ms = math.ceil(reached_us / 1000) - now + LIMIT_KEPT_MS
    redis.call('SET', base .. 'rate:' .. name, string.format('%.0f', reached_us), 'PX', string.format('%.0f', kept_ms))
  end
  for _, slot in ipairs(control.slots) do
    redis.call('SADD', base .. 'slots:' .. slot[1], job)
  end
end

-- Let the next job of a lane go; whoever takes it sees to the one after that.
local function let_go(base, lane)
  redis.call('ZREM', base .. 'lanes', lane)
  local job = pool_pick(base, base .. 'lane:' .. lane, true)
  if not job then return end
  redis.call('ZADD', base .. 'lanes', '+inf', lane)
  redis.call('HSET', base .. 'parked', job, '>' .. lane)
  local number, control = control_get(base, job)
  make_ready(base, job, number, control, true)
end

local function let_go_due(base, now)
  for _, lane in ipairs(redis.call('ZRANGEBYSCORE', base .. 'lanes', '-inf', now, 'LIMIT', 0, LET_GO_AT_ONCE)) do
    pcall(let_go, base, lane) -- a key of a wrong kind holds up its own lane alone
  end
end

-- Give back what a job held that does not run any more.
local function release(base, job, control, now)
  for _, slot in ipairs(control.slots) do
    local lane = 'c:' .. slot[1]
    if redis.pcall('SREM', base .. 'slots:' .. slot[1], job) == 1 and pool_waits(base .. 'lane:' .. lane) then
      arm(base, lane, now)
    end
  end
end

-- Return the earlier of a due second and a millisecond; '' is none.
local function sooner(second, millisecond)
  if not millisecond or tonumber(millisecond) == math.huge then return second end
  if (second or '') ~= '' and tonumber(second) * 1000 <= tonumber(millisecond) then return second end
  return string.format('%.3f', millisecond / 1000)
end

local function forget_numbers(base)
  if redis.call('EXISTS', base .. 'controls', base .. 'parked') == 0 then
    redis.call('DEL', base .. 'orders', base .. 'ready tenants')
    -- What is not urgent may wait on there, and its turns count when urgent jobs come again.
    redis.call('EXPIRE', base .. 'ready turns', redis.call('EXISTS', base .. 'queued') == 1 and TURNS_KEPT_SECONDS or 0)
  end
end

-- Take a job out of the pools; nothing happens to one that is in none.
local function withdraw(base, job, control, now)
  redis.call('ZREM', pool_of(base .. 'ready', control), job)
  local lane = redis.call('HGET', base .. 'parked', job)
  if not lane then return end
  redis.call('HDEL', base .. 'parked', job)
  if string.sub(lane, 1, 1) == '>' then
    rearm(base, string.sub(lane, 2), control, now)
  else
    redis.call('ZREM', pool_of(base .. 'lane:' .. lane, control), job)
    if not (pool_waits(base .. 'lane:' .. lane) or is_going(base, lane)) then redis.call('ZREM', base .. 'lanes', lane) end
  end
end

-- Forget a job that has ended, and what it held.
local function end_control(base, job, now)
  local _, control = control_get(base, job)
  withdraw(base, job, control, now)
  redis.call('HDEL', base .. 'controls', job)
  if control then
    release(base, job, control, now)
    local mark = control.unique and base .. 'unique:' .. control.unique[1]
    if mark and type(control.unique[2]) == 'string' and redis.pcall('GET', mark) == job then redis.call('DEL', mark) end
  end
  forget_numbers(base)
end

-- Some job may run while queued is empty: put one there, so that idle workers hear of it.
local function show_ready(base)
  local queued = base .. 'queued'
  if redis.call('EXISTS', queued) == 1 then return end
  local job = pool_pick(base, base .. 'ready', false)
  if job then redis.call('LPUSH', queued, job) end
end
