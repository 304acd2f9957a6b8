-- emq_watch: says for 15 s that somebody watches a job's previews.
-- Guarantee: its worker gets a hint now (not for one `again`), and learns it from its next report or heartbeat.
-- Arguments: `job` `tenant` (empty: any) `px` (how large they may be, where more than 256 is wanted) `again` (1: a
-- watcher goes on watching).
-- Answer: `ok` `worker_id` `status`; `not_found`.
local WATCH_MS = 15000

-- The largest wish holds, until nobody has repeated it for 15 s.
local function wish(u, job, px)
  local key = u.P .. 'watchpx:' .. job
  if px and px > (tonumber(call('GET', key) or '') or 256) - 1 then
    call('SET', key, Q.int(px), 'PX', WATCH_MS)
  end
end

local function watch(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r = Q.job_of(u, a.job, a.tenant)
  if not r then return { 'not_found' } end
  call('SET', u.P .. 'watch:' .. a.job, '1', 'PX', WATCH_MS)
  call('HSET', u.P .. 'config', 'watched', Q.int(u.now + WATCH_MS))
  local px = tonumber(a.px or '')
  wish(u, a.job, px)
  if Q.HOME[r.status] == 'a' and a.again ~= '1' then
    Q.hint(u, r.instance, 'watch ' .. a.job .. (px and ' ' .. Q.int(px) or ''))
  end
  return { 'ok', 'worker_id', r.worker_id or '', 'status', r.status }
end

define{ function_name = 'emq_watch', callback = watch, flags = { 'allow-oom' } }
