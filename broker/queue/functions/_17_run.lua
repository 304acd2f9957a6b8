-- Jobs that were taken out of their lane; a run: several at the head of one lane, taken at once for a worker that gets
-- several in one call.

-- A job that was taken out of its lane, if it still may start.
function Q.popped(u, class, member, score)
  local r = Q.job(u, string.sub(member, 14))
  Q.advance(u, tonumber(score))
  if not r or r.status ~= 'pending' then return nil end
  if r.expires_at then
    call('ZREM', u.P .. 'expiry', r._id)
    if tonumber(r.expires_at) <= u.now then
      Q.fail_finally(u, r, 'expired', Q.error('expired', 'The job was not started before it expired.'))
      return nil
    end
  end
  local c = Q.class(u, class)
  if c.passed then
    call('HDEL', u.P .. 'c:' .. class, 'passed')
    c.passed = nil
  end
  return r
end

-- Whether the best head stays the choice of this worker as long as it is the best: no model has to be loaded for it.
local function is_plain(u, w, class, tenant)
  local kind, t = Q.class(u, class).kind, Q.tenant(u, tenant)
  if t.parked or t.max_running > 0 then return false end
  return kind == '' or not w.loaded or w.loaded == '' or Q.is_warm(kind, w.loaded)
end

-- Up to which score the jobs of a lane come before those of every other; nil when its class has not the best head.
local function bound_of(u, class, second)
  local top = call('ZRANGE', u.P .. 'i', '0', '1', 'WITHSCORES')
  if top[1] ~= class then return nil end
  return math.min(tonumber(top[4] or math.huge), tonumber(second or math.huge))
end

-- Takes n jobs that are known away from the head of a lane: up to the last one's score, which answers none of them once
-- more, or where the next one has the same score, by their number.
local function take_away(lane, n, score, next_score)
  if score ~= next_score then call('ZREMRANGEBYSCORE', lane, '-inf', score) else call('ZPOPMIN', lane, n) end
end

-- Takes the head of a lane and up to `more` jobs that come next in any case; answers the first, nil when there is no
-- run. `second` is the score of the class's next best lane.
function Q.run(u, w, class, tenant, second, more)
  local bound = is_plain(u, w, class, tenant) and bound_of(u, class, second)
  if not bound then return nil end
  local lane = Q.lane_key(u, class, tenant)
  local jobs = call('ZRANGE', lane, '0', more + 1, 'WITHSCORES')
  local n = 1
  while n <= more and jobs[2 * n + 1] and tonumber(jobs[2 * n + 2]) < bound do n = n + 1 end
  take_away(lane, n, jobs[2 * n], jobs[2 * n + 2])
  Q.led_by(u, class, tenant, jobs[2 * n + 2], second)
  u.run = { worker = w._id, class = class, tenant = tenant, jobs = jobs, at = 1, last = 2 * n }
  return Q.run_on(u, w)
end

-- The next job of a run of this worker's.
function Q.run_on(u, w)
  local run = u.run
  if not run then return nil end
  if run.worker ~= w._id then return Q.end_run(u) end
  while run.at < run.last do
    local at = run.at
    run.at = at + 2
    local r = Q.popped(u, run.class, run.jobs[at], run.jobs[at + 1])
    if r then return r end
  end
  u.run = false
  return nil
end

-- Puts back what is left of a run.
function Q.end_run(u)
  local run = u.run
  u.run = false
  if not run or run.at >= run.last then return end
  for at = run.at, run.last, 2 do
    call('ZADD', Q.lane_key(u, run.class, run.tenant), run.jobs[at + 1], run.jobs[at])
  end
  Q.fix(u, run.class, run.tenant)
end
