-- emq_watch: says for 15 s that somebody watches a job's previews.
-- Guarantee: its worker gets a hint now, and learns it from its next report or heartbeat.
-- Arguments: `job` `tenant` (empty: any).
-- Answer: `ok` `worker_id` `status`; `not_found`.
local WATCH_MS = 15000

local function watch(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r = Q.job_of(u, a.job, a.tenant)
  if not r then return { 'not_found' } end
  redis.call('SET', u.P .. 'watch:' .. a.job, '1', 'PX', WATCH_MS)
  if Q.HOME[r.status] == 'a' then Q.hint(u, r.instance, 'watch ' .. a.job) end
  return { 'ok', 'worker_id', r.worker_id or '', 'status', r.status }
end

redis.register_function{ function_name = 'emq_watch', callback = watch, flags = { 'allow-oom' } }
