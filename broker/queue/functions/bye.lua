-- emq_bye: a worker leaves. Its jobs go back, it is forgotten as a live worker.
-- Guarantee: harmless when repeated, and for an instance that another has superseded.
-- Arguments: `worker` `instance`.
-- Answer: `ok`.
local function bye(keys, argv)
  local u, a = Q.begin(keys, argv)
  local w = Q.caller(u, a.worker, a.instance)
  if not w then return { 'ok' } end
  for _, job in ipairs(call('ZRANGE', u.P .. 'held:' .. a.instance, 0, -1)) do
    local r = Q.job(u, job)
    if r and r.instance == a.instance then Q.released(u, r, 'released') end
  end
  Q.forget_instance(u, a.instance, a.worker)
  call('DEL', u.P .. 'in:' .. a.instance)
  call('ZREM', u.P .. 'workers', a.worker)
  Q.commit(u)
  return { 'ok' }
end

define{ function_name = 'emq_bye', callback = bye, flags = { 'allow-oom' } }
