-- emq_report: a job's progress. The first report of a claim starts the job.
-- Guarantee: refused as `stale_lease` unless the token is the job's current one.
-- Arguments: `job` `token` `p` (the worker's counter within the claim) `data` (JSON) `store` (keep it as the latest).
-- Answer: `ok` `cancel` (reason or empty) `watch` (0, 1, or the pixels wished for); `stale_lease`.

-- Most calls of a busy fleet are reports, and most of those only pass through: they read what they need and no more,
-- before a unit of work is opened. Answers nil when the report starts the job.
local function pass_on(P, a, p)
  local id, token = a.job or '', a.token
  local r = call('HMGET', P .. 'j:' .. id, 'token', 'phase', 'events', 'cancel', 'instance', 'stored_progress')
  if not token or token == '' or r[1] ~= token then return { 'stale_lease' } end
  if not r[2] or r[2] == 'ahead' or (a.store == '1' and not r[6]) then return nil end
  local c = call('HMGET', P .. 'config', 'deployment', 'lease_ms', 'test_clock', 'watched')
  if a.data and a.data ~= '' then
    local event = (r[3] or '0') .. '-' .. p .. '\n'
    call('SPUBLISH', P .. 'ev:' .. (c[1] or '') .. ':' .. id, event .. 'update_job_progress\n' .. a.data)
    if a.store == '1' then call('SET', P .. 'pr:' .. id, event .. a.data, 'PX', '604800000') end
  end
  -- That the worker has it is noted well before a lease has passed, not with each report.
  local held, now = P .. 'held:' .. r[5], Q.now_ms(c[3])
  if now - (call('ZSCORE', held, id) or 0) > (c[2] or Q.LEASE_MS) / 8 then
    call('ZADD', held, Q.int(now), id)
  end
  return { 'ok', 'cancel', r[4] or '', 'watch', Q.watched(P, id, c[4], now) }
end

local function report(keys, argv)
  local P, a = keys[1], Q.arguments(argv)
  local p = a.p and string.match(a.p, '^%d+$') or '1'
  local passed = pass_on(P, a, p)
  if passed then return passed end
  local u = Q.open(P)
  local r = Q.holder(u, a.job, a.token)
  if not r then return { 'stale_lease' } end
  if r.phase == 'ahead' then Q.start(u, r) end
  if a.data and a.data ~= '' then
    Q.publish(u, r, p, 'update_job_progress', a.data)
    if a.store == '1' then
      call('SET', P .. 'pr:' .. a.job, (r.events or '0') .. '-' .. p .. '\n' .. a.data, 'PX', '604800000')
      if not r.stored_progress then Q.put(u, r, 'stored_progress', '1') end
    end
  end
  call('ZADD', P .. 'held:' .. r.instance, u.ms, a.job)
  local watched = Q.watched(P, a.job, u.watched, u.now)
  Q.commit(u)
  return { 'ok', 'cancel', r.cancel or '', 'watch', watched }
end

define{ function_name = 'emq_report', callback = report, flags = { 'allow-oom' } }
