-- What whoever calls next takes care of: lapsed leases, delays that are over, jobs that expire, deadlines.

local GAP_MS, LATELY_MS = 5000, 2000

-- After a gap, a time in which Redis saw neither sweep nor heartbeat (it stood still, or was away), nobody could keep a
-- lease: all get one lease of grace, but not one after the other (a broker may sweep rarely, its workers be dead).
-- Answers whether leases may be taken back.
local function in_force(u)
  local gap = u.seen > 0 and u.now - u.seen > math.max(u.lease / 2, GAP_MS)
  if gap and u.now - u.grace > u.lease then
    u.grace = u.now + u.lease
    call('HSET', u.P .. 'config', 'grace', Q.int(u.grace), 'seen', u.ms)
    u.seen = u.now
  end
  return u.now >= u.grace
end

-- Redis has seen a sign of life of the fleet.
function Q.alive(u)
  local ok = in_force(u)
  if u.seen ~= u.now then call('HSET', u.P .. 'config', 'seen', u.ms) end
  u.seen = u.now
  return ok
end

-- Takes an instance's jobs back and forgets it.
function Q.reap(u, instance)
  local P = u.P
  for _, job in ipairs(call('ZRANGE', P .. 'held:' .. instance, 0, -1)) do
    local r = Q.job(u, job)
    if r and r.instance == instance then Q.lost(u, r) end
  end
  Q.forget_instance(u, instance, call('HGET', P .. 'instances', instance))
end

function Q.reap_lapsed(u, limit)
  if not in_force(u) then return 0 end
  local lapsed = call('ZRANGEBYSCORE', u.P .. 'leases', '-inf', '(' .. u.ms, 'LIMIT', 0, limit)
  for _, instance in ipairs(lapsed) do Q.reap(u, instance) end
  if #lapsed > 0 then Q.count(u, 'lapsed_total', #lapsed) end
  return #lapsed
end

function Q.promote_due(u, limit)
  local due = call('ZRANGEBYSCORE', u.P .. 'due', '-inf', u.ms, 'LIMIT', 0, limit)
  for _, job in ipairs(due) do
    local r = Q.job(u, job)
    if r then Q.due(u, r) else call('ZREM', u.P .. 'due', job) end
  end
  return #due
end

function Q.expire_waiting(u, limit)
  local over = call('ZRANGEBYSCORE', u.P .. 'expiry', '-inf', u.ms, 'LIMIT', 0, limit)
  for _, job in ipairs(over) do
    local r = Q.job(u, job)
    if r and Q.HOME[r.status] == 'w' then Q.expire(u, r) else call('ZREM', u.P .. 'expiry', job) end
  end
  return #over
end

-- The backstop of `timeout_s`, which the worker enforces itself.
function Q.time_out(u, limit)
  local over = call('ZRANGEBYSCORE', u.P .. 'deadline', '-inf', u.ms, 'LIMIT', 0, limit)
  for _, job in ipairs(over) do
    local r = Q.job(u, job)
    if r and r.status == 'processing' and r.phase == 'running' then
      Q.hint(u, r.instance, 'cancel ' .. job)
      Q.failed(u, r, 'timeout', Q.error('timeout', 'The job ran longer than its timeout_s of ' .. r.timeout_s .. ' s.'),
        true)
    else
      call('ZREM', u.P .. 'deadline', job)
    end
  end
  return #over
end

-- Whether a pool that is not paused saw a sign of life so lately that a claim has nothing of this to do.
function Q.is_tended(P)
  local c = call('HMGET', P .. 'config', 'seen', 'paused', 'test_clock')
  return c[1] and not c[2] and math.abs(Q.now_ms(c[3]) - c[1]) < LATELY_MS
end

-- The part of this that a claim or a heartbeat does; a claim leaves it to those who did it a moment ago.
function Q.tend(u, is_claim)
  if is_claim and math.abs(u.now - u.seen) < LATELY_MS then return end
  Q.reap_lapsed(u, 10)
  Q.promote_due(u, 10)
end
