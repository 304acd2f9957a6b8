-- emq_waiting: waiting jobs in the order in which they would be claimed, and the classes that nobody can run.
-- Guarantee: reads only; looks at 300 classes and the 250 lanes with the best heads at most (`partial` says that there
-- may be more), and opens a lane only when its head has its turn.
-- Arguments: `tenant` (empty: all) `priority` (only this one) `after` (a `next`) `limit` (50, at most 64).
-- Answer: `ok` `partial` `next` (`after` that goes on; empty: no more), then <nested `job` with `job_id`, some fields,
-- `kind`, `run_ms`, `workers` (that can run it), `held` (`tenant`, `cap`)> for each, then <nested `class` with `class`,
-- `kind`, `jobs`, `exact` (0: estimated from some of its lanes), `missing` (see emq_submit), `job_id`, `created_at` (of
-- its first)> for each without a worker.
local MOST, CLASSES, STUCK, STUCK_LANES = 64, 300, 30, 150
local FIELDS = { 'tenant', 'class', 'priority', 'created_at', 'attempt', 'failures', 'group' }

-- The tenants that have jobs in a class: up to `most` of them.
local function tenants_of(u, class, most, only)
  local key, out = u.P .. 'h:' .. class.name, {}
  if not only then
    out = call('ZRANGE', key, 0, most - 1)
  elseif call('ZSCORE', key, only) then
    out = { only }
  end
  for _, lane in ipairs(class.parked) do
    if (not only or only == lane.tenant) and #out < most then out[#out + 1] = lane.tenant end
  end
  return out, only and #out or call('ZCARD', key) + #class.parked
end

-- A class that nobody can run: its jobs in up to `most` lanes, scaled up where it has more.
local function stuck(u, class, missing, most, only)
  local P, jobs, first = u.P, 0, nil
  local tenants, all = tenants_of(u, class, most, only)
  for _, tenant in ipairs(tenants) do
    local lane = Q.lane_key(u, class.name, tenant)
    jobs = jobs + call('ZCARD', lane)
    first = first or call('ZRANGE', lane, 0, 0)[1]
  end
  if not first then return nil end
  local job, scale = string.sub(first, 14), all / #tenants
  return { 'class', 'class', class.name, 'kind', Q.class(u, class.name).kind, 'jobs', Q.int(jobs * scale),
    'exact', scale == 1 and '1' or '0', 'missing', missing, 'job_id', job,
    'created_at', call('HGET', P .. 'j:' .. job, 'created_at') or '' }
end

-- What waits and nobody can run, class by class; and whether that is all.
local function lost(u, classes, only)
  local unserved, names, out = {}, {}, {}
  for _, class in ipairs(classes) do
    if not class.served and #unserved < STUCK then
      unserved[#unserved + 1], names[#names + 1] = class, class.name
    end
  end
  local missing, complete = #names > 0 and Q.missing_of(u, names), #unserved < STUCK
  for _, class in ipairs(unserved) do
    local why = missing[class.name]
    if why then
      out[#out + 1] = stuck(u, class, why, math.ceil(STUCK_LANES / #unserved), only)
    else
      complete = false
    end
  end
  return out, complete
end

local function row(u, entry, workers)
  local r, class = entry.record, entry.record[2] or ''
  local c = Q.class(u, class)
  local out = {
    'job', 'job_id', entry.job, 'kind', c.kind, 'run_ms', c.run and Q.int(c.run) or '', 'held', entry.held or '',
    'workers', Q.int(workers[class]),
  }
  local n = #out
  for i = 1, #FIELDS do
    if r[i] then
      out[n + 1], out[n + 2] = FIELDS[i], r[i]
      n = n + 2
    end
  end
  return out
end

-- Adds the rows of the first `n` of `found`.
local function add_rows(u, out, found, n)
  local names, seen = {}, {}
  for i = 1, n do
    found[i].record = call('HMGET', u.P .. 'j:' .. found[i].job, unpack(FIELDS))
    local class = found[i].record[2] or ''
    if not seen[class] then names[#names + 1] = class end
    seen[class] = true
  end
  local workers = Q.workers_of(u, names)
  for i = 1, n do
    out[#out + 1] = 'job'
    out[#out + 1] = row(u, found[i], workers)
  end
end

-- What is asked for as bounds of scores.
local function bounds(a)
  a.low, a.high = '-inf', '+inf'
  if tonumber(a.priority) then
    local from = (100 - tonumber(a.priority)) * Q.LEVEL
    a.low, a.high = Q.int(from), '(' .. Q.int(from + Q.LEVEL)
  end
  local score, key = string.match(a.after or '', '^(%d+):(.*)$')
  if score then
    a.low, a.score, a.key = score, tonumber(score), key
  end
end

local function waiting(keys, argv)
  local u, a = Q.begin(keys, argv)
  for name, value in pairs(a) do
    if value == '' then a[name] = nil end
  end
  bounds(a)
  local limit = math.max(1, math.min(MOST, tonumber(a.limit or 50) or 50))
  local tenants, out = Q.parked_tenants(u), { 'ok', 'partial', '0', 'next', '' }
  local classes, more = Q.waiting_classes(u, tenants, CLASSES)
  local compared = Q.mark_served(u, classes)
  local found, partial = Q.first_jobs(u, classes, a, limit + 1)
  local unserved, complete = lost(u, classes, a.tenant)
  if partial or more or not compared or not complete then out[3] = '1' end
  if #found > limit then out[5] = Q.int(found[limit].score) .. ':' .. found[limit].key end
  add_rows(u, out, found, math.min(limit, #found))
  for _, class in ipairs(unserved) do
    out[#out + 1] = 'class'
    out[#out + 1] = class
  end
  return out
end

define{ function_name = 'emq_waiting', callback = waiting, flags = { 'no-writes' } }
