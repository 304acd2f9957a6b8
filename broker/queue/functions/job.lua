-- emq_job: a job's record.
-- Guarantee: reads only.
-- Arguments: `job` `tenant` (empty: any).
-- Answer: `ok` with the record's fields, `position`, `exact`; `not_found`.
local function job(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r = Q.job_of(u, a.job, a.tenant)
  if not r then return { 'not_found' } end
  local position, exact = Q.position(u, r, 1000)
  local out = { 'ok', 'position', position and Q.int(position) or '', 'exact', exact and '1' or '0',
    'now', u.ms }
  return Q.record(u, r, out, true)
end

redis.register_function{ function_name = 'emq_job', callback = job, flags = { 'no-writes' } }
