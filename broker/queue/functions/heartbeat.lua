-- emq_heartbeat: a worker's own sign of life: extends its lease, says which jobs it has, learns what it must not miss.
-- Guarantee: a job that it holds but does not name for one lease goes back; one that it no longer holds is `lost`.
-- Arguments: `worker` `instance` `status` `jobs` (lines `<job> <token>`) `loaded` `gpus` (JSON).
-- Answer: `ok` `jobs` `work` `paused` `drain` `watch` `lease_ms` `brokers`; `superseded`; `unknown`.

-- What a worker is told about a job that it names.
local function verdict(u, w, job, token)
  local r = Q.holder(u, job, token)
  if not r or r.instance ~= w.instance then return 'lost' end
  call('ZADD', u.P .. 'held:' .. w.instance, u.ms, job)
  Q.noticed(u, r)
  return r.cancel and 'cancel ' .. r.cancel or 'ok'
end

local function judge_jobs(u, w, jobs)
  local lines, watched = {}, {}
  for _, line in ipairs(Q.lines(jobs)) do
    local job, token = string.match(line, '^(%S+) (%S+)$')
    if job then
      lines[#lines + 1] = job .. ' ' .. verdict(u, w, job, token)
      if call('EXISTS', u.P .. 'watch:' .. job) == 1 then watched[#watched + 1] = job end
    end
  end
  return table.concat(lines, '\n'), table.concat(watched, '\n')
end

local function heartbeat(keys, argv)
  local u, a = Q.begin(keys, argv)
  local P = u.P
  local w, refused = Q.caller(u, a.worker, a.instance)
  if not w then return { refused } end
  Q.alive(u)
  call('ZADD', P .. 'leases', Q.int(u.now + u.lease), a.instance)
  call('ZADD', P .. 'workers', u.ms, a.worker)
  Q.put(u, w, 'beat', u.ms)
  if a.status and a.status ~= w.status then Q.put(u, w, 'status', a.status) end
  if a.gpus then Q.put(u, w, 'gpus', a.gpus) end
  Q.note_loaded(u, w, a.loaded)
  local jobs, watched = judge_jobs(u, w, a.jobs)
  Q.release_unnamed(u, a.instance)
  Q.tend(u)
  local work = Q.has_work(u, w) or Q.has_unnoticed(u, w)
  local answer = { 'ok', 'jobs', jobs, 'work', work and '1' or '0', 'paused', (u.paused or w.paused) and '1' or '0',
    'drain', w.drain and '1' or '0', 'watch', watched, 'lease_ms', Q.int(u.lease), 'brokers', Q.brokers(u) }
  Q.commit(u)
  return answer
end

define{ function_name = 'emq_heartbeat', callback = heartbeat, flags = { 'allow-oom' } }
