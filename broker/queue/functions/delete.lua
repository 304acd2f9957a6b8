-- emq_delete: forgets a job that has ended, as retention would later.
-- Guarantee: a job that has not ended stays, and so does one whose dependants are still to be told of its end.
-- Arguments: `job` `tenant` (empty: any).
-- Answer: `ok` `tenant`; `not_found`; `conflict` `status` `reason` (`state`, `dependants`: in a moment).
local function delete(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r = Q.job_of(u, a.job, a.tenant)
  if not r then return { 'not_found' } end
  local tenant, status = r.tenant, r.status
  if not Q.TERMINAL[status] then return { 'conflict', 'status', status, 'reason', 'state' } end
  if call('EXISTS', u.P .. 'kids:' .. a.job) == 1 then
    return { 'conflict', 'status', status, 'reason', 'dependants' }
  end
  Q.forget(u, a.job, status)
  Q.commit(u)
  return { 'ok', 'tenant', tenant }
end

define{ function_name = 'emq_delete', callback = delete, flags = { 'allow-oom' } }
