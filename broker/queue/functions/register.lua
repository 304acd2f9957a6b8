-- emq_register: makes a worker's instance known, with what it can do.
-- Guarantee: one instance a worker: an older one is told `superseded` and its jobs go back at once, unless this one
-- names it as `previous` (the same process on a new connection): then it takes its jobs over. With `jobs` it says which
-- of them it still has; the others go back at once.
-- Arguments: `worker` `instance` `machine` `profile` (JSON) `info` (JSON) `slots` `via` `status` `previous` `jobs`
-- (lines `<job> <token>`) `ranges` (opaque: what values inputs take).
-- Answer: `ok` `superseded` `deployment` `lease_ms` `profile` `input_urls` `hang_ms` `stall_ms` `max_finishing`
-- `max_crashes` `brokers` `paused`.

-- Ends what an older instance of this worker has. One whose connection had closed only hands over, unless this one says
-- what it still has.
local function replace(u, w, a)
  local old = w.instance
  if old ~= a.instance and old ~= a.previous and w.drain then Q.put(u, w, 'drain', nil) end
  local left = w.gone and call('ZSCORE', u.P .. 'leases', old)
  if old == a.instance or w.gone and not left then return '' end
  if old == a.previous or left and not a.jobs then
    Q.hand_over(u, old, a.instance)
    return left and '' or old
  end
  for _, job in ipairs(call('ZRANGE', u.P .. 'held:' .. old, 0, -1)) do
    local r = Q.job(u, job)
    if r and r.instance == old then Q.lost(u, r) end
  end
  call('DEL', u.P .. 'held:' .. old)
  call('ZREM', u.P .. 'leases', old)
  call('HDEL', u.P .. 'instances', old)
  Q.hint(u, old, 'superseded')
  Q.unset_idle(u, w)
  for _, name in ipairs({ 'running', 'ahead', 'finishing', 'tokens', 'loaded' }) do Q.put(u, w, name, nil) end
  return old
end

local function take_profile(u, w, profile, was_live)
  if was_live and w.profile == profile then return end
  if was_live then
    Q.unset_idle(u, w)
    Q.leave_profile(u, w.profile)
  end
  Q.put(u, w, 'profile', profile)
  Q.join_profile(u, profile)
end

local function settings(u)
  local c = call('HMGET', u.P .. 'config', 'input_urls', 'hang_ms', 'stall_ms', 'max_finishing',
    'max_output_bytes')
  return { 'input_urls', c[1] or 'public', 'hang_ms', c[2] or '600000', 'stall_ms', c[3] or '600000',
    'max_finishing', c[4] or '4', 'max_output_bytes', c[5] or '' }
end

local function register(keys, argv)
  local u, a = Q.begin(keys, argv)
  local P = u.P
  if not a.worker or a.worker == '' or not a.instance or a.instance == '' then
    return { 'invalid', 'argument', 'worker' }
  end
  Q.alive(u)
  local profile = Q.new_profile(u, a.profile or '{}', a.ranges)
  local w, superseded, was_live = Q.worker(u, a.worker), '', false
  if w then
    was_live = not w.gone
    superseded = replace(u, w, a)
  else
    w = { _id = a.worker, _key = P .. 'wk:' .. a.worker, _is_worker = true }
    u.workers[a.worker] = w
  end
  take_profile(u, w, profile, was_live)
  if w.gone then
    Q.put(u, w, 'gone', nil)
    call('PERSIST', w._key)
  end
  local fields = {
    instance = a.instance, machine = a.machine, info = a.info, slots = a.slots or '1', via = a.via or 'redis',
    status = a.status or 'idle', registered_at = u.ms, beat = u.ms,
  }
  for name, value in pairs(fields) do Q.put(u, w, name, value) end
  call('ZADD', P .. 'workers', u.ms, a.worker)
  call('ZADD', P .. 'leases', Q.int(u.now + u.lease), a.instance)
  call('HSET', P .. 'instances', a.instance, a.worker)
  if a.jobs then Q.lose_unnamed(u, a.instance, a.jobs) end
  local answer = { 'ok', 'superseded', superseded, 'deployment', u.deployment, 'lease_ms', Q.int(u.lease), 'profile',
    profile, 'brokers', Q.brokers(u), 'paused', (u.paused or w.paused) and '1' or '0' }
  for _, value in ipairs(settings(u)) do answer[#answer + 1] = value end
  Q.commit(u)
  return answer
end

define{ function_name = 'emq_register', callback = register, flags = { 'allow-oom' } }
