-- What lies before a job, for `emq_forecast`: each part looks at a bounded number of things and scales up from them.

local PROFILES, CLASSES, OTHER_LANES, RUNNING, HOLDERS = 100, 12, 4, 8, 50

-- The live profiles, those with most workers first, each with whether it can run the class.
function Q.able_profiles(u, class)
  local live, out = call('ZREVRANGE', u.P .. 'profiles', 0, PROFILES - 1, 'WITHSCORES'), { workers = 0, fit = {} }
  for i = 1, #live, 2 do
    local name, workers = live[i], tonumber(live[i + 1])
    local fits = call('SISMEMBER', u.P .. 'ok:' .. name, class) == 1
    out[#out + 1] = { name = name, workers = workers, fits = fits }
    if fits then
      out.workers = out.workers + workers
      out.fit[name] = true
    end
  end
  return out
end

-- What a run of a class takes on the average, in ms, loads of models included.
local function mean_run(u, class)
  return tonumber(call('HGET', u.P .. 'c:' .. class, 'mean') or nil) or Q.cost(u, class) * Q.UNIT_MS
end

-- The average run over the workers that fit: each GPU at the pace that was measured on it.
function Q.pace(u, class, live)
  local P, usual, speed = u.P, mean_run(u, class), 0
  for _, p in ipairs(live) do
    if p.fits then
      local gpu = call('GET', P .. 'pg:' .. p.name)
      local seen = gpu and call('HGET', P .. 'c:' .. class, 'g:' .. gpu)
      local ms = tonumber(string.match(seen or '', '^%S+')) or usual
      speed = speed + p.workers / math.max(1, ms)
    end
  end
  return live.workers / speed
end

-- Jobs of a class whose score is at most `score`.
function Q.jobs_before(u, class, score, limit)
  local P = u.P
  local tenants = call('ZRANGEBYSCORE', P .. 'h:' .. class, '-inf', score, 'LIMIT', 0, limit)
  local jobs = 0
  for _, tenant in ipairs(tenants) do
    jobs = jobs + call('ZCOUNT', Q.lane_key(u, class, tenant), '-inf', score)
  end
  if #tenants == limit then jobs = jobs * call('ZCOUNT', P .. 'h:' .. class, '-inf', score) / limit end
  return jobs
end

-- Which part of a class's work falls to the workers that fit.
local function share(u, class, live)
  local all, ours = 0, 0
  for i = 1, math.min(#live, 8) do
    local p = live[i]
    if call('SISMEMBER', u.P .. 'ok:' .. p.name, class) == 1 then
      all = all + p.workers
      if p.fits then ours = ours + p.workers end
    end
  end
  return all > 0 and ours / all or 0
end

-- Jobs and GPU time of other classes that come first.
function Q.others_before(u, class, score, live)
  local P = u.P
  local names = call('ZRANGEBYSCORE', P .. 'i', '-inf', score, 'LIMIT', 0, CLASSES + 1)
  local jobs, ms, seen = 0, 0, 0
  for _, name in ipairs(names) do
    if name ~= class and seen < CLASSES then
      seen = seen + 1
      local part = share(u, name, live)
      if part > 0 then
        local n = part * Q.jobs_before(u, name, score, OTHER_LANES)
        jobs, ms = jobs + n, ms + n * mean_run(u, name)
      end
    end
  end
  if seen == 0 or #names <= CLASSES then return jobs, ms end
  local scale = (call('ZCOUNT', P .. 'i', '-inf', score) - #names + seen) / seen
  return jobs * scale, ms * scale
end

-- The jobs that are claimed or run, of few workers; nil: of more.
local function held_jobs(u)
  local P, jobs = u.P, {}
  if call('ZCARD', P .. 'leases') > HOLDERS then return nil end
  for _, instance in ipairs(call('ZRANGE', P .. 'leases', 0, -1)) do
    for _, id in ipairs(call('ZRANGE', P .. 'held:' .. instance, 0, RUNNING)) do jobs[#jobs + 1] = id end
  end
  return jobs
end

-- How many of the workers that fit are busy, and what they still have to do (nil: not looked at).
function Q.busy_workers(u, live)
  local P, idle = u.P, 0
  for name in pairs(live.fit) do idle = idle + call('ZCARD', P .. 'idle:' .. name) end
  local counts = call('HMGET', P .. 'count', 'claimed', 'processing')
  local active = (counts[1] or 0) + (counts[2] or 0)
  local jobs = active <= RUNNING and held_jobs(u)
  if not jobs then return math.max(0, math.min(live.workers - idle, active)), nil end
  local busy, rest, seen = 0, 0, {}
  for _, id in ipairs(jobs) do
    local r = Q.job(u, id)
    local w = r and r.phase ~= 'finishing' and Q.worker(u, r.worker_id)
    if w and live.fit[w.profile] then
      local run = mean_run(u, r.class)
      if r.phase == 'running' then run = math.max(run / 10, run - (u.now - r.started_at)) end
      if not seen[w._id] then busy = busy + 1 end
      seen[w._id] = true
      rest = rest + run
    end
  end
  return math.min(busy, live.workers), rest
end
