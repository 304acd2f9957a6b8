-- emq_metrics: what emq_stats does not tell and a monitoring system wants: histograms, and what waits by class.
-- Guarantee: reads only; bounded: at most 20 classes, 32 tenants of each, 200 steps through lanes.
-- Arguments: `classes` (lines: told first, the rest are those whose turn comes next).
-- Answer: `ok` `buckets` (lines: upper bounds in ms) `wait` `run` `upload` (lines: jobs in each bucket, one more for
-- those above the last; empty ones are 0) `wait_ms` `run_ms` `upload_ms` (sums) then `class` <nested `ok` with `class`
-- `kind` `levels` (lines `<priority> <waiting> <age of the oldest in ms>`)> for each.
local CLASSES, TENANTS, STEPS = 20, 32, 200

local function histograms(u, out)
  for _, what in ipairs({ 'wait', 'run', 'upload' }) do
    local names = { 'h:' .. what .. ':ms_total' }
    for i = 1, #Q.BUCKETS + 1 do names[i + 1] = 'h:' .. what .. ':' .. i .. '_total' end
    local values = call('HMGET', u.P .. 'count', unpack(names))
    for i, value in ipairs(values) do values[i] = value or '0' end
    out[#out + 1], out[#out + 2] = what .. '_ms', table.remove(values, 1)
    out[#out + 1], out[#out + 2] = what, table.concat(values, '\n')
  end
end

-- The classes to tell about, without a worker to avoid, and the names that stand for them in the index.
local function chosen(u, asked)
  local order, members = {}, {}
  local function add(name)
    local class = string.match(name, '^[^!]+')
    if class and not members[class] and #order < CLASSES then
      order[#order + 1] = class
      members[class] = { class }
    end
    if class and members[class] and name ~= class then table.insert(members[class], name) end
  end
  for _, name in ipairs(asked) do add(name) end
  for _, name in ipairs(call('ZRANGE', u.P .. 'i', 0, 3 * CLASSES)) do add(name) end
  return order, members
end

-- Adds a lane's jobs to `levels`, level by level; answers how many steps are left.
local function lane(key, levels, left)
  local from = '-inf'
  while left > 0 do
    local first = call('ZRANGEBYSCORE', key, from, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not first[1] then return left end
    local level = Q.level_of(tonumber(first[2]))
    from = Q.int((101 - level) * Q.LEVEL)
    local found = levels[level] or { waiting = 0, first = first[1] }
    found.waiting = found.waiting + call('ZCOUNT', key, first[2], '(' .. from)
    if first[1] < found.first then found.first = first[1] end
    levels[level] = found
    left = left - 1
  end
  return left
end

local function age(u, member)
  local since = call('HMGET', u.P .. 'j:' .. string.sub(member, 14), 'ready_at', 'created_at')
  return Q.int(math.max(0, u.now - tonumber(since[1] or since[2] or u.now)))
end

local function row(u, class, members, left)
  local levels, lines = {}, {}
  for _, name in ipairs(members) do
    for _, tenant in ipairs(call('ZRANGE', u.P .. 'h:' .. name, 0, TENANTS - 1)) do
      left = lane(Q.lane_key(u, name, tenant), levels, left)
    end
  end
  for level, found in pairs(levels) do
    lines[#lines + 1] = Q.int(level) .. ' ' .. Q.int(found.waiting) .. ' ' .. age(u, found.first)
  end
  return { 'ok', 'class', class, 'kind', Q.class(u, class).kind, 'levels', table.concat(lines, '\n') }, left
end

local function metrics(keys, argv)
  local u, a = Q.begin(keys, argv)
  local bounds, out, left = {}, { 'ok' }, STEPS
  for i, bound in ipairs(Q.BUCKETS) do bounds[i] = Q.int(bound) end
  out[2], out[3] = 'buckets', table.concat(bounds, '\n')
  histograms(u, out)
  local order, members = chosen(u, Q.lines(a.classes))
  for _, class in ipairs(order) do
    out[#out + 1] = 'class'
    out[#out + 1], left = row(u, class, members[class], left)
  end
  return out
end

define{ function_name = 'emq_metrics', callback = metrics, flags = { 'no-writes' } }
