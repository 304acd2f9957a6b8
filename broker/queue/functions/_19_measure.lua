-- What runs of a class take: averages that follow, also by GPU, and the last 50 run times.

local WEIGHT, RING, WIDTH, MEAN = 0.2, 50, 8, 20
local PAUSE_MS = 100 -- a well-known class is measured ten times a second at most

local function follow(old, sample)
  return old and old + WEIGHT * (sample - old) or sample
end

-- The kind of GPU of the worker that holds a job; nil when it does not say.
local function gpu_of(u, r)
  local w = r.worker_id and Q.worker(u, r.worker_id)
  return w and w.profile and call('GET', u.P .. 'pg:' .. w.profile) or nil
end

-- A GPU's own average of a class, `<ms> <runs>`, with one run more.
local function on_gpu(old, exec_ms)
  local average, runs = string.match(old or '', '^(%S+) (%d+)$')
  return string.format('%.1f %d', follow(tonumber(average), exec_ms), (runs or 0) + 1)
end

-- Upper bounds in ms of the buckets in which times are counted.
Q.BUCKETS = { 100, 500, 1000, 2500, 5000, 10000, 30000, 60000, 120000, 300000, 600000, 1800000, 3600000, 14400000 }

local COUNTERS, SUM = {}, #Q.BUCKETS + 2

-- The names of a histogram's counters.
local function new_counters(what)
  local names = { [SUM] = 'h:' .. what .. ':ms_total' }
  for i = 1, SUM - 1 do names[i] = 'h:' .. what .. ':' .. i .. '_total' end
  COUNTERS[what] = names
  return names
end

-- Counts how long something took, for histograms: `h:<what>:<bucket>_total` and the sum `h:<what>:ms_total`.
function Q.observe(u, what, ms)
  local i, buckets, names = 1, Q.BUCKETS, COUNTERS[what] or new_counters(what)
  while buckets[i] and ms > buckets[i] do i = i + 1 end
  local counts, bucket, sum = u.counts, names[i], names[SUM]
  counts[bucket] = (counts[bucket] or 0) + 1
  if ms >= 1 then counts[sum] = (counts[sum] or 0) + ms - ms % 1 end
end

-- Counts a run of `exec_ms`; `cold` says that a model was loaded in it.
function Q.measure(u, r, exec_ms, cold)
  exec_ms = tonumber(exec_ms)
  if not exec_ms or not (exec_ms >= 0 and exec_ms < 1e12) then return end
  Q.observe(u, 'run', exec_ms)
  if cold == '1' then Q.count(u, 'loads_total', 1) end
  local c = Q.class(u, r.class)
  if c.runs >= RING and math.abs(u.now - c.measured) < PAUSE_MS then return end
  local key, field = u.P .. 'c:' .. r.class, cold == '1' and 'cold' or 'run'
  local gpu = gpu_of(u, r)
  local got = call('HMGET', key, field, 'ring', 'runs', 'vram_mb', 'g:' .. (gpu or ''), 'mean')
  if not got[4] then return end
  local average = follow(tonumber(got[1] or nil), exec_ms)
  local ring = string.sub((got[2] or ''), -(RING - 1) * WIDTH)
    .. string.format('%08d', math.min(99999999, math.floor(exec_ms)))
  local runs, mean = (got[3] or 0) + 1, tonumber(got[6] or nil) or exec_ms
  mean = mean + (exec_ms - mean) / math.min(runs, MEAN)
  call('HSET', key, field, string.format('%.1f', average), 'ring', ring, 'runs', Q.int(runs), 'measured', u.ms,
    'mean', string.format('%.1f', mean))
  c[field], c.runs, c.measured = average, c.runs + 1, u.now
  if gpu then call('HSET', key, 'g:' .. gpu, on_gpu(got[5], exec_ms)) end
end

-- At a first claim: how long has the job waited since it could be claimed, and was the start within what was predicted
-- at the submit (`est`: `<p50> <p90>`, ms after it)?
function Q.judge_wait(u, r)
  if r.attempt ~= '1' then return end
  Q.observe(u, 'wait', u.now - (r.ready_at or r.created_at))
  if not r.est then return end
  local p50, p90 = string.match(r.est, '^(%d+) (%d+)$')
  local waited = u.now - r.created_at
  Q.count(u, 'est_total', 1)
  if waited <= tonumber(p50 or -1) then Q.count(u, 'est_within_p50_total', 1) end
  if waited <= tonumber(p90 or -1) then Q.count(u, 'est_within_p90_total', 1) end
end
