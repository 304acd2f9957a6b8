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

-- The lanes of a class (only that of the tenant `only`, if given): tenant, head, and what holds it back.
function Q.lanes_of(u, class, parked, only)
  local out = {}
  local heads = redis.call('ZRANGE', u.P .. 'h:' .. class, 0, HEADS - 1, 'WITHSCORES')
  for i = 1, #heads, 2 do
    if not only or heads[i] == only then out[#out + 1] = { tenant = heads[i], head = tonumber(heads[i + 1]) } end
  end
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

-- The first `n` jobs with `low` <= score < `high` (texts of ZRANGEBYSCORE) in lanes that somebody can run, behind the
-- one of score `score` and rank `key` (if given); and whether not all lanes could be looked at.
function Q.first_jobs(u, classes, parked, a, n)
  local found, edge, opened = {}, math.huge, 0
  for _, class in ipairs(classes) do
    if class.served and class.head <= edge then
      for _, lane in ipairs(Q.lanes_of(u, class.name, parked, a.tenant)) do
        if lane.head <= edge and opened < HEADS then
          opened = opened + 1
          local key = u.P .. 'n:' .. class.name .. ':' .. lane.tenant
          local got = redis.call('ZRANGEBYSCORE', key, a.low, a.high, 'WITHSCORES', 'LIMIT', 0, n + 1)
          for i = 1, #got, 2 do
            local rank = class.name .. ' ' .. lane.tenant .. ' ' .. got[i]
            local entry = { job = string.sub(got[i], 14), key = rank, score = tonumber(got[i + 1]), held = lane.held }
            if entry.score ~= a.score or rank > a.key then found[#found + 1] = entry end
          end
          if #found > 4 * n then edge = cut(found, n) end
        end
      end
    end
  end
  cut(found, n)
  return found, opened >= HEADS
end
