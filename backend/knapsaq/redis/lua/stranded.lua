-- Tell the lanes whose jobs nobody lets go: without a due time, a job that was let go, a holder or a strike.
-- keys: incomplete
-- args: most
-- Returns lane and number of its jobs, for each; nothing is looked at where more than most are parked.
local incomplete = KEYS[1]
local most = ARGV[1]
local call = redis.call
local base = base_of(incomplete)

if call('HLEN', base .. 'parked') > tonumber(most) then return {} end
local waiting, let_go = {}, {}
for _, lane in ipairs(call('HVALS', base .. 'parked')) do
  if string.sub(lane, 1, 1) == '>' then
    let_go[string.sub(lane, 2)] = true
  else
    waiting[lane] = (waiting[lane] or 0) + 1
  end
end

-- Whether something is there after which the lane's next job is let go.
local function is_kept(lane)
  if let_go[lane] or call('ZSCORE', base .. 'lanes', lane) then return true end
  local kind, name = string.sub(lane, 1, 1), string.sub(lane, 3)
  if kind == 's' then return call('HEXISTS', base .. 'strikes', name) == 1 end
  for _, holder in ipairs(kind == 'c' and call('SMEMBERS', base .. 'slots:' .. name) or {}) do
    if call('HEXISTS', base .. 'claims', holder) == 1 then return true end
  end
  return false
end

local stranded = {}
for lane, number in pairs(waiting) do
  if not is_kept(lane) then
    stranded[#stranded + 1] = lane
    stranded[#stranded + 1] = number
  end
end
return stranded
