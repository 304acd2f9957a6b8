-- emq_pause: pauses or resumes the pool, a tenant or a worker. What runs goes on.
-- Guarantee: no claim after it gets a job that it holds back; workers also learn of it from their heartbeat.
-- Arguments: `scope` (pool, tenant, worker) `id` `on`.
-- Answer: `ok`; `not_found`.

-- Wakes workers for what waits.
local function wake_for_heads(u)
  for _, class in ipairs(call('ZRANGE', u.P .. 'i', 0, 31)) do Q.claimable(u, class) end
end

local function pause_pool(u, on)
  if on == u.paused then return { 'ok' } end
  for _, instance in ipairs(call('ZRANGE', u.P .. 'leases', 0, 63)) do
    Q.hint(u, instance, on and 'pause' or 'resume')
  end
  if on then
    call('HSET', u.P .. 'config', 'paused', '1')
  else
    call('HDEL', u.P .. 'config', 'paused')
    u.paused = false
    wake_for_heads(u)
  end
  return { 'ok' }
end

local function pause_tenant(u, tenant, on)
  if tenant == '' then return { 'not_found' } end
  Q.tenant(u, tenant).paused = on
  if on then
    call('HSET', u.P .. 'tn:' .. tenant, 'paused', '1')
  else
    call('HDEL', u.P .. 'tn:' .. tenant, 'paused')
    Q.unpark(u, tenant)
    wake_for_heads(u)
  end
  return { 'ok' }
end

local function pause_worker(u, name, on)
  local w = Q.worker(u, name)
  if not w then return { 'not_found' } end
  if on == (w.paused == '1') then return { 'ok' } end
  Q.put(u, w, 'paused', on and '1' or nil)
  if on then Q.unset_idle(u, w) end
  Q.hint(u, w.instance, on and 'pause' or 'resume')
  return { 'ok' }
end

local function pause(keys, argv)
  local u, a = Q.begin(keys, argv)
  local on = a.on == '1'
  local answer = { 'not_found' }
  if a.scope == 'pool' then
    answer = pause_pool(u, on)
  elseif a.scope == 'tenant' then
    answer = pause_tenant(u, a.id or '', on)
  elseif a.scope == 'worker' then
    answer = pause_worker(u, a.id or '', on)
  end
  Q.commit(u)
  return answer
end

define{ function_name = 'emq_pause', callback = pause, flags = { 'allow-oom' } }
