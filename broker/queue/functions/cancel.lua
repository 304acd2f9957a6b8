-- emq_cancel: cancels a job.
-- Guarantee: a waiting job is cancelled at once; of a claimed one the cancel is kept until its worker or lease ends it.
-- Arguments: `job` `tenant` (empty: any) `reason` `waiting` (1: only a job that no worker holds).
-- Answer: `ok` `status`; `not_found`; `conflict` `status`.
local function cancel(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r = Q.job_of(u, a.job, a.tenant)
  if not r then return { 'not_found' } end
  if r.status == 'completed' or r.status == 'failed' then return { 'conflict', 'status', r.status } end
  if a.waiting == '1' and r.status ~= 'cancelled' and Q.HOME[r.status] ~= 'w' then
    return { 'conflict', 'status', r.status }
  end
  if r.status ~= 'cancelled' then Q.cancel(u, r, a.reason) end
  Q.commit(u)
  return { 'ok', 'status', r.status }
end

define{ function_name = 'emq_cancel', callback = cancel, flags = { 'allow-oom' } }
