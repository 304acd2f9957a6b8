-- emq_report: a job's progress. The first report of a claim starts the job.
-- Guarantee: refused as `stale_lease` unless the token is the job's current one.
-- Arguments: `job` `token` `p` (the worker's counter within the claim) `data` (JSON) `store` (keep it as the latest).
-- Answer: `ok` `cancel` (reason or empty) `watch` (0, 1, or the pixels wished for); `stale_lease`.
local function report(keys, argv)
  local u, a = Q.begin(keys, argv)
  local P = u.P
  local r = Q.holder(u, a.job, a.token)
  if not r then return { 'stale_lease' } end
  if r.phase == 'ahead' then Q.start(u, r) end
  local p = a.p and string.match(a.p, '^%d+$') or '1'
  if a.data and a.data ~= '' then
    Q.publish(u, r, p, 'update_job_progress', a.data)
    if a.store == '1' then
      redis.call('SET', P .. 'pr:' .. a.job, (r.events or '0') .. '-' .. p .. '\n' .. a.data, 'PX', 604800000)
      if not r.stored_progress then Q.put(u, r, 'stored_progress', '1') end
    end
  end
  redis.call('ZADD', P .. 'held:' .. r.instance, u.ms, a.job)
  local watched = Q.watched(u, a.job)
  Q.commit(u)
  return { 'ok', 'cancel', r.cancel or '', 'watch', watched }
end

redis.register_function{ function_name = 'emq_report', callback = report, flags = { 'allow-oom' } }
