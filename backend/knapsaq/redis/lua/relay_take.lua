-- Read what a queue has to say to queues in other slots, if no other worker is at it.
-- keys: relay lock
-- args: worker lock_ms after count
-- After is the entry behind which to read, '-' for the first.
-- Returns in how many ms another worker's lock ends, 0 where it is one's own; and the entries as id, fields. The lock is
-- given back where there are none.
local relay, lock = unpack(KEYS)
local worker, lock_ms, after, count = unpack(ARGV)
local call = redis.call

local holder = call('GET', lock)
local entries = {}
if not holder or holder == worker then
  entries = call('XRANGE', relay, after == '-' and after or '(' .. after, '+', 'COUNT', count)
  if #entries > 0 then
    call('SET', lock, worker, 'PX', lock_ms)
  else
    call('DEL', lock)
  end
  return { 0, entries }
end
return { call('EXISTS', relay) == 1 and math.max(1, call('PTTL', lock)) or 0, entries }
