-- emq_leave: a worker's connection has closed. It is offline at once; its jobs wait one lease for it to come back.
-- Guarantee: harmless when repeated; what it holds goes back when that lease has lapsed, or when it registers without.
-- Arguments: `instance`.
-- Answer: `ok`; `unknown`.
local DAY = 86400000

local function leave(keys, argv)
  local u, a = Q.begin(keys, argv)
  local P = u.P
  local worker = a.instance and call('HGET', P .. 'instances', a.instance)
  local w = worker and Q.caller(u, worker, a.instance)
  if not w then return { 'unknown' } end
  if call('EXISTS', P .. 'held:' .. a.instance) == 0 then
    Q.forget_instance(u, a.instance, worker)
  else
    call('ZADD', P .. 'leases', Q.int(u.now + u.lease), a.instance)
    Q.unset_idle(u, w)
    Q.leave_profile(u, w.profile)
    Q.put(u, w, 'gone', u.ms)
    Q.put(u, w, 'status', 'offline')
    call('PEXPIRE', w._key, DAY)
  end
  call('DEL', P .. 'in:' .. a.instance)
  Q.commit(u)
  return { 'ok' }
end

define{ function_name = 'emq_leave', callback = leave, flags = { 'allow-oom' } }
