-- Read what a queue has to say to queues in other slots, if no other worker is at it.
-- keys: relay lock
-- args: worker lock_ms after count bytes
-- After is the entry behind which to read, '-' for the first.
-- The entries of a call have together little more than some bytes.
-- Returns in how many ms another worker's lock ends, 0 where it is one's own; and the entries as id, fields. The lock is
-- given back where there are none.
local relay, lock = unpack(KEYS)
local worker, lock_ms, after, count, bytes = unpack(ARGV)
local AT_ONCE = 10
local call = redis.call

count, bytes = tonumber(count), tonumber(bytes)

local holder = call('GET', lock)
local entries = {}
if not holder or holder == worker then
  repeat
    local part = call('XRANGE', relay, after == '-' and after or '(' .. after, '+', 'COUNT', AT_ONCE)
    for _, entry in ipairs(part) do
      entries[#entries + 1] = entry
      after = entry[1]
      bytes = bytes - string.len(entry[2][#entry[2]]) -- the value, if any, is the last of the fields
    end
  until #part < AT_ONCE or #entries >= count or bytes <= 0
  if #entries > 0 then
    call('SET', lock, worker, 'PX', lock_ms)
  else
    call('DEL', lock)
  end
  return { 0, entries }
end
return { call('EXISTS', relay) == 1 and math.max(1, call('PTTL', lock)) or 0, entries }
