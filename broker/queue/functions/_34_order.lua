-- Waiting jobs in claim order over all lanes, for readers: a merge that opens no lane whose head comes too late.

local HEADS = 400

-- The tenants (of 200) with parked lanes.
function Q.parked_tenants(u)
  local out = {}
  for _, t in ipairs(redis.call('SRANDMEMBER', u.P .. 'tenants', 200)) do
    if Q.tenant(u, t).parked then out[#out + 1] = t end
  end
  return out
end

-- The classes with waiting jobs, those with the best heads first; parked ones last. Answers names and heads.
function Q.waiting_classes(u, parked, limit)
  local got, out, seen = redis.call('ZRANGE', u.P .. 'i', 0, limit - 1, 'WITHSCORES'), {}, {}
  for i = 1, #got, 2 do
    out[#out + 1] = { name = got[i], head = tonumber(got[i + 1]) }
    seen[got[i]] = true
  end
  for _, t in ipairs(parked) do
    for _, class in ipairs(redis.call('ZRANGE', u.P .. 'parked:' .. t, 0, 49)) do
      if not seen[class] then out[#out + 1] = { name = class, head = 0 } end
      seen[class] = true
    end
  end
  return out
end

-- The lanes of a class (only that of the tenant `only`, if given) with heads up to `edge`, and its parked ones: tenant,
-- head, and what holds it back.
function Q.lanes_of(u, class, parked, only, edge)
  local out, key = {}, u.P .. 'h:' .. class
  local heads = only and { only, redis.call('ZSCORE', key, only) or nil }
    or redis.call('ZRANGEBYSCORE', key, '-inf', edge, 'WITHSCORES', 'LIMIT', 0, HEADS)
  for i = 2, #heads, 2 do out[#out + 1] = { tenant = heads[i - 1], head = tonumber(heads[i]) } end
  for _, t in ipairs(parked) do
    local head = (not only or t == only) and redis.call('ZSCORE', u.P .. 'parked:' .. t, class)
    local why = head and (Q.tenant(u, t).paused and 'tenant' or 'cap')
    if head then out[#out + 1] = { tenant = t, head = tonumber(head), held = why } end
  end
  return out
end

-- Of equal scores a claim takes the first class, in it the first tenant, of that the first arrival: their `key`.
-- Keeps the first `n` of `found`; answers the score behind which nothing is needed any more.
local function cut(found, n)
  table.sort(found, function(x, y) return x.score < y.score or (x.score == y.score and x.key < y.key) end)
  for i = #found, n + 1, -1 do found[i] = nil end
  return found[n] and found[n].score or math.huge
end

local function bound(edge, otherwise)
  return edge < math.huge and Q.int(edge) or otherwise
end

-- Whether a head is one of the jobs that are asked for.
local function is_asked(head, a)
  local low, high = tonumber(a.low) or 0, tonumber(string.match(a.high, '%d+')) or math.huge
  return head > 0 and head < high and (head > low or head == low and not a.score)
end

-- The lanes with heads up to the `n`th best one of `heads`, and that.
local function nearest(lanes, heads, n)
  table.sort(heads)
  local out, edge = {}, heads[n]
  for _, lane in ipairs(lanes) do
    if lane.head <= edge then out[#out + 1] = lane end
  end
  return out, edge
end

-- The lanes that the first `n` jobs are in, and the score behind which none of those is: of each lane its head at least
-- comes before it. Answers no more than HEADS lanes.
local function first_lanes(u, classes, parked, a, n)
  local lanes, heads, edge = {}, {}, math.huge
  for _, class in ipairs(classes) do
    if class.served and class.head <= edge then
      for _, lane in ipairs(Q.lanes_of(u, class.name, parked, a.tenant, bound(edge, '+inf'))) do
        if #lanes == HEADS then return lanes, edge end
        lane.class = class.name
        lanes[#lanes + 1] = lane
        if is_asked(lane.head, a) then heads[#heads + 1] = lane.head end
      end
      if #heads >= n then lanes, edge = nearest(lanes, heads, n) end
    end
  end
  return lanes, edge
end

-- The first `n` jobs with `low` <= score < `high` (texts of ZRANGEBYSCORE) in lanes that somebody can run, behind the
-- one of score `score` and rank `key` (if given); and whether not all lanes could be looked at.
function Q.first_jobs(u, classes, parked, a, n)
  local lanes, edge = first_lanes(u, classes, parked, a, n)
  local found = {}
  for _, lane in ipairs(lanes) do
    if lane.head <= edge then
      local name = lane.class .. ':' .. lane.tenant
      local got = redis.call('ZRANGEBYSCORE', u.P .. 'n:' .. name, a.low, bound(edge, a.high), 'WITHSCORES', 'LIMIT', 0,
        n + 1)
      for i = 1, #got, 2 do
        local rank = lane.class .. ' ' .. lane.tenant .. ' ' .. got[i]
        local entry = { job = string.sub(got[i], 14), key = rank, score = tonumber(got[i + 1]), held = lane.held }
        if entry.score ~= a.score or rank > a.key then found[#found + 1] = entry end
      end
      if #found > 4 * n then edge = math.min(edge, cut(found, n)) end
    end
  end
  cut(found, n)
  return found, #lanes == HEADS
end
