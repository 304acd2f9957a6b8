-- emq_forecast: what lies before a job: who could run it, how many jobs come first, how long runs take.
-- Guarantee: reads only; looks at no more than 100 profiles, 32 lanes of its own class, 12 other classes and 8 jobs
-- that run; what is beyond is scaled up from those.
-- Arguments: `tenant` and `job` (a waiting one) or `jobs` (lines, at most 5), or `tenant` `class` `priority` (one that
-- would be submitted now).
-- Answer: `ok` `now` `runs` (measured, of its class) `ring` (the last run times, 8 digits each, ms) `run_ms` (average
-- over the workers that fit, by GPU) `workers` (that fit) `busy` `rest_ms` (what their jobs still take; empty: more of
-- them than were looked at) `ahead` (jobs) `ahead_ms`; `unknown` `why` (class, samples, worker, paused, state).
-- To `jobs`: `ok` then `job` <such an answer> for each.
local LANES, SAMPLES, MOST = 32, 5, 5

local function unknown(why)
  return { 'unknown', 'why', why }
end

-- The job that is asked about: its class, its lane's class, its tenant, its score, jobs of its class before it.
local function subject(u, a)
  if a.job then
    local r = Q.job_of(u, a.job, a.tenant)
    if not r then return nil, { 'not_found' } end
    local position = Q.position(u, r, LANES)
    if not position then return nil, unknown('state') end
    return { class = r.class, lane = Q.lane_class(r), tenant = r.tenant, score = r.score, ahead = position - 1 }
  end
  local s = { class = a.class or '', lane = a.class or '', tenant = a.tenant or '' }
  if not Q.class(u, s.class).exists then return nil, unknown('class') end
  s.score = Q.score(u, tonumber(a.priority or 0) or 0, s.tenant, s.class)
  s.ahead = Q.jobs_before(u, s.class, s.score, LANES)
  return s
end

local function one(u, a)
  local s, refused = subject(u, a)
  if not s then return refused end
  local c = call('HMGET', u.P .. 'c:' .. s.class, 'runs', 'ring')
  if tonumber(c[1] or 0) < SAMPLES then return unknown('samples') end
  local t = Q.tenant(u, s.tenant)
  if u.paused or t.paused then return unknown('paused') end
  local live = Q.able_profiles(u, s.lane)
  if live.workers == 0 then return unknown('worker') end
  local run = Q.pace(u, s.class, live)
  local jobs, ms = Q.others_before(u, s.lane, s.score, live)
  local busy, rest = Q.busy_workers(u, live)
  local workers = t.max_running > 0 and math.min(live.workers, t.max_running) or live.workers
  return { 'ok', 'now', Q.int(u.now), 'runs', c[1], 'ring', c[2], 'run_ms', Q.int(run), 'workers', Q.int(workers),
    'busy', Q.int(math.min(busy, workers)), 'rest_ms', rest and Q.int(rest) or '',
    'ahead', string.format('%.2f', s.ahead + jobs), 'ahead_ms', Q.int(s.ahead * run + ms) }
end

local function forecast(keys, argv)
  local u, a = Q.begin(keys, argv)
  if not a.jobs then return one(u, a) end
  local out = { 'ok' }
  for i, id in ipairs(Q.lines(a.jobs)) do
    if i > MOST then break end
    out[#out + 1] = 'job'
    out[#out + 1] = one(u, { job = id, tenant = a.tenant })
  end
  return out
end

define{ function_name = 'emq_forecast', callback = forecast, flags = { 'no-writes' } }
