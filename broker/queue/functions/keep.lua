-- emq_keep: keeps an instance's lease on behalf of a worker that cannot speak itself (its keeper; a gateway's broker).
-- Guarantee: only while the worker's own heartbeat is younger than `hang_ms`. A job that it was given and has not
-- noticed goes back. Behind a gateway, jobs that it has not named for one lease go back: those that have not started,
-- and all of them when it could speak (`awake`).
-- Arguments: `instance` `worker` (optional; then `superseded` is told from `unknown`) `awake` (1: it could have named
-- its jobs all the time of a lease).
-- Answer: `ok` `lease_ms`; `superseded`; `unknown` (no such instance any more, or it hangs).
local function keep(keys, argv)
  local u, a = Q.begin(keys, argv)
  local worker = a.worker or a.instance and call('HGET', u.P .. 'instances', a.instance)
  if not worker then return { 'unknown' } end
  local w, refused = Q.caller(u, worker, a.instance)
  if not w then return { refused } end
  local more = call('HMGET', w._key, 'beat', 'via')
  if u.now - (more[1] or 0) > Q.setting(u, 'hang_ms') then return { 'unknown' } end
  Q.alive(u)
  call('ZADD', u.P .. 'leases', Q.int(u.now + u.lease), a.instance)
  if more[2] == 'gateway' then
    Q.release_unnamed(u, a.instance, a.awake ~= '1')
  elseif w.ahead then
    Q.release_unnoticed(u, a.instance)
  end
  Q.commit(u)
  return { 'ok', 'lease_ms', Q.int(u.lease) }
end

define{ function_name = 'emq_keep', callback = keep, flags = { 'allow-oom' } }
