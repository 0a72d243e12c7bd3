-- Read what nodes of a workflow returned, a join's as its shape says.
-- keys: flow results
-- args: first | node
-- Returns a JSON text for each node, null for one that has not succeeded; or nothing if there is no such workflow.
local flow, results = unpack(KEYS)
local first = ARGV[1]
local AT_ONCE = 1000

if redis.call('EXISTS', flow) == 0 then return {} end

local text_of

local function value_of(node)
  local stored = redis.call('HGET', results, node)
  if stored then return stored end
  local shape = redis.call('HGET', flow, 's' .. node)
  return shape and text_of(cjson.decode(shape)) or 'null'
end

local function texts_of(items)
  local texts = {}
  for from = 1, #items, AT_ONCE do
    local till = math.min(from + AT_ONCE - 1, #items)
    local names = {}
    for i = from, till do
      names[#names + 1] = type(items[i]) == 'number' and string.format('%d', items[i]) or ''
    end
    for i, stored in ipairs(redis.call('HMGET', results, unpack(names))) do
      texts[#texts + 1] = stored or text_of(items[from + i - 1])
    end
  end
  return texts
end

text_of = function(shape)
  if type(shape) == 'number' then return value_of(string.format('%d', shape)) end
  if #shape > 0 or not next(shape) then return '[' .. table.concat(texts_of(shape), ',') .. ']' end
  local entries = {}
  for name, item in pairs(shape) do
    entries[#entries + 1] = cjson.encode(name) .. ':' .. text_of(item)
  end
  return '{' .. table.concat(entries, ',') .. '}'
end

local answers = { value_of(first) }
for i = 2, #ARGV do
  answers[i] = value_of(ARGV[i])
end
return answers
