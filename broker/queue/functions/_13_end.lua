-- How a job ends, and what depends on it.

local SLACK_MS = 600000 -- a record outlives its index entries, so that the sweep still finds the tenant in it

-- Gives an ended job its life time; answers it.
function Q.outlive(u, r)
  local lives, status = u.lives or { nil, completed = nil }, r.status
  local life = lives[status] or Q.int(Q.setting(u, 'ttl_' .. status .. '_ms') + SLACK_MS)
  r._life, u.lives, lives[status] = life, lives, life
  lives[#lives + 1] = r
  return life
end

-- Ends a job that is held by nobody and in no lane. Its events are logged by the caller around this.
function Q.finish(u, r, status)
  local P, id = u.P, r._id
  Q.touch(u, r)
  Q.move(u, r, status)
  r.finished_at = u.ms
  if r.cancel and status ~= 'cancelled' then Q.put(u, r, 'cancel', nil) end
  if r.due_at then Q.put(u, r, 'due_at', nil) end
  Q.count(u, status .. '_total', 1)
  Q.count_of(u, r.tenant, status .. '_total', 1)
  local life = Q.outlive(u, r)
  if r.stored_progress then call('PEXPIRE', P .. 'pr:' .. id, life) end
  if r.kids then
    call('PEXPIRE', P .. 'kids:' .. id, life)
    call('RPUSH', P .. 'cascade', id)
    u.cascade = true
  end
  Q.index_end(u, r)
  if r.group then Q.group_ended(u, r) end
  if r.hook then Q.outbox(u, r, status) end
  if r.trace and not r.claimed_at then Q.trace(u, r, status) end
end

-- Fails a job for good. `error` is JSON, `code` what it says.
function Q.fail_finally(u, r, code, error, dead)
  r._why = code
  Q.put(u, r, 'error', error)
  Q.put(u, r, 'error_code', code)
  if dead then Q.put(u, r, 'dead_letter', '1') end
  Q.finish(u, r, 'failed')
  if dead then call('ZADD', u.P .. 'dead', u.ms, r._id) end
  Q.update(u, r, code)
  Q.log_failure(u, r, error, false, dead)
end

function Q.end_cancelled(u, r, reason)
  r._why = reason
  Q.put(u, r, 'reason', reason)
  Q.finish(u, r, 'cancelled')
  Q.update(u, r, reason)
end

-- Completes a job that was let go.
function Q.complete(u, r, result)
  local P, id = u.P, r._id
  Q.log_full_progress(u, r)
  if r.stored_progress then
    call('DEL', P .. 'pr:' .. id)
    Q.put(u, r, 'stored_progress', nil)
  end
  if r.error then Q.put(u, r, 'error', nil) end
  if r.error_code then Q.put(u, r, 'error_code', nil) end
  Q.finish(u, r, 'completed')
  Q.update(u, r)
  Q.log_completion(u, r, result)
end

-- A held job has its result (emq_finish): answers what its worker is told. A requested cancel wins.
function Q.finished(u, a)
  local r, status = Q.holder(u, a.job, a.token)
  if not r then return status and { 'ok', 'status', status, 'repeated', '1' } or { 'stale_lease' } end
  r._spans = a.spans
  if Q.cancelled(u, r) then return { 'ok', 'status', 'cancelled', 'repeated', '0' } end
  if r.phase == 'ahead' then Q.start(u, r) end
  if r.executed_at then
    Q.observe(u, 'upload', u.now - r.executed_at)
  else
    Q.measure(u, r, a.exec_ms, a.cold)
  end
  Q.let_go(u, r, 'completed')
  Q.complete(u, r, a.result and a.result ~= '' and a.result or '{}')
  return { 'ok', 'status', 'completed', 'repeated', '0', nil, nil } -- room for what a claim adds
end

-- A waiting job leaves whatever it waits in.
function Q.unwait(u, r)
  if r.status == 'pending' and not r.due_at then
    Q.lane_remove(u, r)
  else
    call('ZREM', u.P .. 'due', r._id)
  end
  if r.status ~= 'pending' then Q.pin(u, r, -1) end
  if r.expires_at then call('ZREM', u.P .. 'expiry', r._id) end
end

-- A class with scheduled or blocked jobs, or parked ones, is not forgotten, however long they wait.
function Q.pin_class(u, class, delta)
  call('HINCRBY', u.P .. 'c:' .. class, 'pinned', delta)
end

function Q.pin(u, r, delta)
  Q.pin_class(u, r.class, delta)
end

-- A delay is over: the job may be claimed now.
function Q.due(u, r)
  call('ZREM', u.P .. 'due', r._id)
  local again = r.status == 'pending'
  if r.status == 'scheduled' then
    Q.pin(u, r, -1)
    Q.move(u, r, 'pending')
  end
  if r.status == 'pending' then Q.enqueue(u, r, nil, again) end
end

-- A waiting job is not started in time.
function Q.expire(u, r)
  Q.unwait(u, r)
  Q.fail_finally(u, r, 'expired', Q.error('expired', 'The job was not started before it expired.'))
end
