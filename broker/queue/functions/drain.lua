-- emq_drain: lets a worker finish what it has and take nothing new, until it starts again or `on` is 0.
-- Guarantee: no claim after it gets a job; the worker also learns of it from its heartbeat.
-- Arguments: `worker` `on`.
-- Answer: `ok`; `not_found`.
local function drain(keys, argv)
  local u, a = Q.begin(keys, argv)
  local w = Q.worker(u, a.worker or '')
  if not w then return { 'not_found' } end
  local on = a.on ~= '0'
  if on ~= (w.drain == '1') then
    Q.put(u, w, 'drain', on and '1' or nil)
    if on then Q.unset_idle(u, w) end
    Q.hint(u, w.instance, on and 'drain' or 'resume')
    Q.commit(u)
  end
  return { 'ok' }
end

define{ function_name = 'emq_drain', callback = drain, flags = { 'allow-oom' } }
