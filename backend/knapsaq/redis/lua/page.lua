-- List some of the jobs that have not ended, with where they are.
-- keys: queued active incomplete
-- args: places offset limit most
-- Places is some of a(ctive), q(ueued), p(arked) and s(cheduled); what is listed comes in the order of these letters.
-- Returns id, letter, record or '', and of an active job its claim or '', of a parked one its lane, of a scheduled one its
-- due second, for each. Of the parked ones no more than about most are looked at.
local queued, active, incomplete = unpack(KEYS)
local places, offset, limit, most = unpack(ARGV)
offset, limit, most = tonumber(offset), tonumber(limit), tonumber(most)
local call = redis.call
local base = base_of(incomplete)
local found = {}

local function add(job, letter, detail)
  limit = limit - 1
  for _, field in ipairs({ job, letter, call('GET', job) or '', detail or '' }) do
    found[#found + 1] = field
  end
end

-- List some of a list or a sorted set, by the commands that read and count it.
local function add_from(key, letter, read, count, detail_of)
  if limit <= 0 then return end
  for _, job in ipairs(call(read, key, offset, offset + limit - 1)) do
    add(job, letter, detail_of and detail_of(job))
  end
  offset = math.max(0, offset - call(count, key))
end

local function claim_of(job)
  return call('HGET', base .. 'claims', job)
end

local listing = {}

function listing.a()
  add_from(active, 'a', 'LRANGE', 'LLEN', claim_of)
end

function listing.q()
  local ready = base .. 'ready'
  add_from(ready, 'q', 'ZRANGE', 'ZCARD')
  add_from(queued, 'q', 'LRANGE', 'LLEN')
  for _, tenant in ipairs(limit > 0 and call('ZRANGE', ready .. ' tenants', 0, -1) or {}) do
    if limit <= 0 then return end
    add_from(ready .. ' tenant ' .. tenant, 'q', 'ZRANGE', 'ZCARD')
  end
end

function listing.p()
  if limit <= 0 then return end
  local parked = base .. 'parked'
  local few = call('HLEN', parked) <= most
  local entries = few and call('HGETALL', parked) or call('HSCAN', parked, 0, 'COUNT', most)[2]
  for i = 1, #entries, 2 do
    local lane = entries[i + 1]
    if string.sub(lane, 1, 1) == '>' then
      -- It was let go, and stands among the queued ones.
    elseif offset > 0 then
      offset = offset - 1
    elseif limit > 0 then
      add(entries[i], 'p', lane)
    end
  end
end

function listing.s()
  if limit <= 0 then return end
  local due = call('ZRANGEBYSCORE', incomplete, '(0', '+inf', 'WITHSCORES', 'LIMIT', offset, limit)
  for i = 1, #due, 2 do
    add(due[i], 's', due[i + 1])
  end
end

for letter in string.gmatch(places, '.') do
  listing[letter]()
end
return found
