-- emq_waiting: waiting jobs in the order in which they would be claimed, and the classes that nobody can run.
-- Guarantee: reads only; looks at 300 classes and 400 lanes at most, those with the best heads (`partial` says that
-- there may be more).
-- Arguments: `tenant` (empty: all) `priority` (only this one) `after` (a `next`) `limit` (50, at most 100).
-- Answer: `ok` `partial` `next` (`after` that goes on; empty: no more), then <nested `job` with `job_id`, some fields,
-- `kind`, `run_ms`, `workers` (that can run it), `held` (`tenant`, `cap`)> for each, then <nested `class` with `class`,
-- `kind`, `jobs`, `missing` (see emq_submit), `job_id`, `created_at` (of its first)> for each without a worker.
local CLASSES, STUCK = 300, 50
local FIELDS = { 'tenant', 'class', 'priority', 'created_at', 'attempt', 'failures', 'group' }

local function stuck(u, class, lanes)
  local jobs, first = 0, nil
  for _, lane in ipairs(lanes) do
    local key = u.P .. 'n:' .. class .. ':' .. lane.tenant
    jobs = jobs + redis.call('ZCARD', key)
    first = first or redis.call('ZRANGE', key, 0, 0)[1]
  end
  if not first then return nil end
  local job = string.sub(first, 14)
  return { 'class', 'class', class, 'kind', Q.class(u, class).kind, 'jobs', Q.int(jobs), 'missing', Q.missing(u, class),
    'job_id', job, 'created_at', redis.call('HGET', u.P .. 'j:' .. job, 'created_at') or '' }
end

local function row(u, entry, workers)
  local out, r = { 'job', 'job_id', entry.job }, entry.record
  for i, name in ipairs(FIELDS) do
    if r[i] then
      out[#out + 1] = name
      out[#out + 1] = r[i]
    end
  end
  local class = r[2] or ''
  local c = Q.class(u, class)
  for name, value in pairs({ kind = c.kind, run_ms = c.run and Q.int(c.run) or '', held = entry.held or '' }) do
    out[#out + 1] = name
    out[#out + 1] = value
  end
  out[#out + 1] = 'workers'
  out[#out + 1] = Q.int(workers[class])
  return out
end

-- Adds the rows of the first `n` of `found`.
local function add_rows(u, out, found, n)
  local names, seen = {}, {}
  for i = 1, n do
    found[i].record = redis.call('HMGET', u.P .. 'j:' .. found[i].job, unpack(FIELDS))
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
  local limit = math.max(1, math.min(100, tonumber(a.limit or 50) or 50))
  local parked, out = Q.parked_tenants(u), { 'ok', 'partial', '0', 'next', '' }
  local classes, lost = Q.waiting_classes(u, parked, CLASSES), {}
  Q.mark_served(u, classes)
  for _, class in ipairs(classes) do
    if not class.served and #lost < STUCK then
      lost[#lost + 1] = stuck(u, class.name, Q.lanes_of(u, class.name, parked, a.tenant, '+inf'))
    end
  end
  local found, partial = Q.first_jobs(u, classes, parked, a, limit + 1)
  if partial or #classes >= CLASSES then out[3] = '1' end
  if #found > limit then out[5] = Q.int(found[limit].score) .. ':' .. found[limit].key end
  add_rows(u, out, found, math.min(limit, #found))
  for _, class in ipairs(lost) do
    out[#out + 1] = 'class'
    out[#out + 1] = class
  end
  return out
end

redis.register_function{ function_name = 'emq_waiting', callback = waiting, flags = { 'no-writes' } }
