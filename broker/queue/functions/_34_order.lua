-- Waiting jobs in claim order over all lanes, for readers: a merge that opens a lane when its head's turn has come.

local LANES, PARKED, PART, MOST = 250, 400, 2, 64

-- A set read in parts: `fetch(offset, n)` answers members and scores; `name` makes the key of a member.
local function reader(source, fetch, name)
  local buffer, at, offset, part, over = {}, 1, 0, PART, false
  function source.step()
    if at > #buffer then
      if over then return false end
      buffer, at = fetch(offset, part), 1
      over, offset, part = #buffer < 2 * part, offset + part, math.min(MOST, 2 * part)
      if not buffer[1] then return false end
    end
    source.member, source.score = buffer[at], tonumber(buffer[at + 1])
    source.key, at = name(buffer[at]), at + 2
    return true
  end
  return source
end

-- The lanes of a class (only that of the tenant `only`, if given).
local function lanes_of(u, class, only)
  local key = u.P .. 'h:' .. class.name
  return reader({ class = class.name }, function(offset, n)
    if not only then return call('ZRANGE', key, offset, offset + n - 1, 'WITHSCORES') end
    local head = offset == 0 and call('ZSCORE', key, only)
    return head and { only, head } or {}
  end, function(tenant) return class.name .. ' ' .. tenant end)
end

-- The jobs that are asked for of a lane.
local function jobs_of(u, class, tenant, a, held)
  local lane, rank = Q.lane_key(u, class, tenant), class .. ' ' .. tenant .. ' '
  local low = a.low
  if a.score and rank < a.key and string.sub(a.key, 1, #rank) ~= rank then low = '(' .. a.low end
  local source = reader({ held = held }, function(offset, n)
    return call('ZRANGEBYSCORE', lane, low, a.high, 'WITHSCORES', 'LIMIT', offset, n)
  end, function(member) return rank .. member end)
  repeat
    if not source.step() then return nil end
  until source.score ~= a.score or source.key > a.key
  return source
end

-- The tenants (of 200) with parked lanes.
function Q.parked_tenants(u)
  local out = {}
  for _, t in ipairs(call('SRANDMEMBER', u.P .. 'tenants', 200)) do
    if call('HGET', u.P .. 'tn:' .. t, 'parked') == '1' then out[#out + 1] = t end
  end
  return out
end

-- The classes with waiting jobs, those with the best heads first; then those that are parked only. Answers names, heads
-- and parked lanes; and whether there are more.
function Q.waiting_classes(u, tenants, limit)
  local got, out, known = call('ZRANGE', u.P .. 'i', 0, limit, 'WITHSCORES'), {}, {}
  local function class(name, head)
    known[name] = { name = name, head = head, parked = {} }
    out[#out + 1] = known[name]
  end
  for i = 1, math.min(#got, 2 * limit), 2 do class(got[i], tonumber(got[i + 1])) end
  local more, each = #got > 2 * limit, math.ceil(PARKED / math.max(1, #tenants))
  for _, t in ipairs(tenants) do
    local lanes = call('ZRANGE', u.P .. 'parked:' .. t, 0, each, 'WITHSCORES')
    more = more or #lanes > 2 * each
    for i = 1, math.min(#lanes, 2 * each), 2 do
      if not known[lanes[i]] then class(lanes[i]) end
      table.insert(known[lanes[i]].parked, { tenant = t, head = tonumber(lanes[i + 1]) })
    end
  end
  return out, more
end

-- The parked lanes, each with what holds it back.
local function parked_lanes(u, classes, only)
  local heap = {}
  for _, class in ipairs(classes) do
    for _, lane in ipairs(class.served and class.parked or {}) do
      local one = { class = class.name, member = lane.tenant, score = lane.head }
      one.key, one.held = class.name .. ' ' .. lane.tenant, Q.tenant(u, lane.tenant).paused and 'tenant' or 'cap'
      function one.step() return false end
      if not only or only == lane.tenant then Q.heap_push(heap, one) end
    end
  end
  return heap
end

-- Adds the lanes of the classes (`at` and on; they are in order) whose best heads may come before `than`.
local function open_classes(u, classes, at, lanes, than, only)
  local class = classes[at]
  while class and class.head and (not than or not Q.comes_first(than, { score = class.head, key = class.name })) do
    local source = class.served and lanes_of(u, class, only)
    if source and source.step() then Q.heap_push(lanes, source) end
    if not than or lanes[1] and Q.comes_first(lanes[1], than) then than = lanes[1] end
    at = at + 1
    class = classes[at]
  end
  return at
end

-- Opens the lane on top: its jobs come in.
local function open_lane(u, lanes, jobs, a)
  local lane = lanes[1]
  local source = jobs_of(u, lane.class, lane.member, a, lane.held)
  if source then Q.heap_push(jobs, source) end
  Q.heap_next(lanes)
end

-- The first `n` jobs with `low` <= score < `high` (texts of ZRANGEBYSCORE) in lanes that somebody can run, behind the
-- one of score `score` and rank `key` (if given); and whether not all lanes could be looked at.
function Q.first_jobs(u, classes, a, n)
  local lanes, jobs, found, looked, at, cut = parked_lanes(u, classes, a.tenant), {}, {}, 0, 1, false
  local high = tonumber(string.match(a.high, '%d+')) or math.huge
  while #found < n do
    local lane, job = lanes[1], jobs[1]
    if job and (not lane or Q.comes_first(job, lane)) then lane = job end
    if at then at = open_classes(u, classes, at, lanes, lane, a.tenant) end
    lane = lanes[1]
    if not lane and not job then return found, cut end
    if not lane or job and Q.comes_first(job, lane) then
      found[#found + 1] = { job = string.sub(job.member, 14), key = job.key, score = job.score, held = job.held }
      Q.heap_next(jobs)
    elseif lane.score >= high then
      lanes, at = {}, nil
    elseif looked >= LANES then
      lanes, at, cut = {}, nil, true
    else
      open_lane(u, lanes, jobs, a)
      looked = looked + 1
    end
  end
  return found, cut
end
