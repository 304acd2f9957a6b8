-- emq_gone: an instance has died: its jobs go back at once, as if its lease had lapsed.
-- Guarantee: harmless when repeated.
-- Arguments: `instance`.
-- Answer: `ok`; `unknown`.
local function gone(keys, argv)
  local u, a = Q.begin(keys, argv)
  if not a.instance or not call('HGET', u.P .. 'instances', a.instance) then return { 'unknown' } end
  Q.reap(u, a.instance)
  Q.commit(u)
  return { 'ok' }
end

define{ function_name = 'emq_gone', callback = gone, flags = { 'allow-oom' } }
