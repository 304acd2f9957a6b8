-- emq_release: a worker gives a job back that it will not run; no attempt is counted.
-- Guarantee: a repeated call with the token gets the same answer.
-- Arguments: `job` `token` `reason`.
-- Answer: `ok` `status` `repeated`; `stale_lease`.
local function release(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r, status = Q.holder(u, a.job, a.token)
  if not r then
    if not status then return { 'stale_lease' } end
    return { 'ok', 'status', status, 'repeated', '1' }
  end
  status = Q.released(u, r, a.reason and a.reason ~= '' and a.reason or 'released', true)
  Q.commit(u)
  return { 'ok', 'status', status, 'repeated', '0' }
end

define{ function_name = 'emq_release', callback = release, flags = { 'allow-oom' } }
