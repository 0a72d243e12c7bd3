-- What scripts ask of their call: the time, and the prefix of their queue's keys.

-- Return the time in ms since 1970: the caller's, or where that is empty the server's.
local function time_ms(now)
  if now ~= '' then return tonumber(now) end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Return saq:<queue>: from the key of what has not ended.
local function base_of(incomplete)
  return string.sub(incomplete, 1, -#'incomplete' - 1)
end

local CONTROL_MARK = '"control":' -- stands in each record that has a control
