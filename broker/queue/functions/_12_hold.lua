-- A worker's hold on a job: taken by a claim, given up when the job ends or goes back.

local DAY = 86400000

-- The record of the worker that holds a job; nil when another instance has taken its name.
local function holder_of(u, r)
  local w = u.workers[r.worker_id] or Q.worker(u, r.worker_id)
  if w and w.instance == r.instance then return w end
  return nil
end

-- Moves a held job to a phase (ahead, running, finishing; nil: no longer held) in its worker's figures and, as long as
-- it takes a slot, its tenant's.
function Q.phase(u, r, phase)
  local w, old = holder_of(u, r), r.phase
  if w then
    Q.touch(u, w)
    if old then w[old] = Q.less(w[old]) end
    if phase then w[phase] = Q.more(w[phase]) end
  end
  local was, is = old and old ~= 'finishing', phase and phase ~= 'finishing'
  if was and not is then
    Q.count_of(u, r.tenant, 'running', -1)
    Q.unpark(u, r.tenant)
  elseif is and not was then
    Q.count_of(u, r.tenant, 'running', 1)
  end
  Q.touch(u, r)
  r.phase = phase
end

-- Gives a claimed job to a worker.
function Q.take(u, r, w, token)
  Q.touch(u, r)
  r.worker_id, r.instance, r.token, r.claimed_at, r.attempt = w._id, w.instance, token, u.ms, Q.more(r.attempt)
  Q.count(u, 'attempts_total', 1)
  Q.phase(u, r, 'ahead')
  Q.zadd(u, u.P .. 'held:' .. w.instance, u.ms, r._id)
  Q.remember(u, w, token, r._id)
  Q.move(u, r, 'claimed')
end

-- Starts a claimed job: its worker reported on it for the first time.
function Q.start(u, r)
  Q.phase(u, r, 'running')
  r.started_at = u.ms
  if r.timeout_s then
    call('ZADD', u.P .. 'deadline', Q.int(u.now + r.timeout_s * 1000 + u.lease), r._id)
  end
  Q.move(u, r, 'processing')
  Q.update(u, r)
  if r.hook then Q.outbox(u, r, 'started') end
end

-- The GPU has done a held job, its outputs are still to be stored (emq_executed): answers what its worker is told.
function Q.executed(u, a)
  local r, status = Q.holder(u, a.job, a.token)
  if not r and not status then return { 'stale_lease' } end
  local repeated = not r or r.phase == 'finishing'
  if not repeated then
    if r.phase == 'ahead' then Q.start(u, r) end
    if r.timeout_s then call('ZREM', u.P .. 'deadline', a.job) end
    Q.phase(u, r, 'finishing')
    Q.put(u, r, 'executed_at', u.ms)
    if a.timings then Q.put(u, r, 'timings', a.timings) end
    Q.measure(u, r, a.exec_ms, a.cold)
    Q.zadd(u, u.P .. 'held:' .. r.instance, u.ms, a.job)
  end
  return { 'ok', 'repeated', repeated and '1' or '0' }
end

-- Ends a job's hold; `status` and `will_retry` are what a repeated call with its token is told.
function Q.let_go(u, r, status, will_retry)
  Q.zrem(u, u.P .. 'held:' .. r.instance, r._id)
  if r.trace then Q.trace(u, r, status) end
  if r.timeout_s and r.phase == 'running' then call('ZREM', u.P .. 'deadline', r._id) end
  Q.phase(u, r, nil)
  if status then r.done = r.token .. ' ' .. status .. ' ' .. (will_retry and '1' or '0') end
  r.token, r.instance = nil, nil
end

-- Puts a job that was let go back to wait: into its lane at its old place, or until `due`.
function Q.put_back(u, r, reason, due)
  for _, name in ipairs({ 'worker_id', 'claimed_at', 'started_at', 'executed_at', 'cancel' }) do
    if r[name] then Q.put(u, r, name, nil) end
  end
  Q.put(u, r, 'reason', reason)
  Q.move(u, r, 'pending')
  if r.expires_at then call('ZADD', u.P .. 'expiry', r.expires_at, r._id) end
  if due and due > u.now then
    Q.put(u, r, 'due_at', Q.int(due))
    call('ZADD', u.P .. 'due', r.due_at, r._id)
    Q.update(u, r, reason)
  else
    Q.enqueue(u, r, reason)
  end
end

-- Makes a pending job claimable, and says so unless it was pending before (after a pause between attempts).
function Q.enqueue(u, r, reason, silent)
  if r.due_at then Q.put(u, r, 'due_at', nil) end
  -- The variant may have been forgotten while the job ran.
  if r.variant and not Q.class(u, r.variant).exists then Q.variant(u, r.class, r.avoid) end
  if not r.score then
    Q.put(u, r, 'score', Q.score(u, tonumber(r.priority), r.tenant, r.class))
    Q.put(u, r, 'ready_at', u.ms)
  else
    Q.old_place(u, r)
    Q.stay_ahead(u, r)
  end
  Q.lane_add(u, r)
  if not silent then Q.update(u, r, reason, (Q.position(u, r, 64))) end
  Q.claimable(u, Q.lane_class(r))
end

-- Says goodbye to an instance: its lease, inbox and place among the idle go; its jobs must have gone before.
function Q.forget_instance(u, instance, worker)
  local P = u.P
  call('ZREM', P .. 'leases', instance)
  call('HDEL', P .. 'instances', instance)
  call('DEL', P .. 'held:' .. instance)
  local w = worker and Q.worker(u, worker)
  if not w or w.instance ~= instance or w.gone then return end
  Q.unset_idle(u, w)
  Q.leave_profile(u, w.profile)
  for _, name in ipairs({ 'running', 'ahead', 'finishing', 'tokens' }) do Q.put(u, w, name, nil) end
  Q.put(u, w, 'gone', u.ms)
  Q.put(u, w, 'status', 'offline')
  call('PEXPIRE', w._key, DAY)
end
