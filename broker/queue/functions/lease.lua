-- emq_lease: checks the ticket of an upload.
-- Guarantee: reads only.
-- Arguments: `job` `attempt` `token`.
-- Answer: `ok` `tenant` `worker_id` `max_bytes`; `stale_lease`.
local function lease(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r = Q.holder(u, a.job, a.token)
  if not r or a.attempt and a.attempt ~= r.attempt then return { 'stale_lease' } end
  local max_bytes = call('HGET', u.P .. 'config', 'max_output_bytes')
  return { 'ok', 'tenant', r.tenant, 'worker_id', r.worker_id, 'max_bytes', max_bytes or '' }
end

define{ function_name = 'emq_lease', callback = lease, flags = { 'no-writes' } }
