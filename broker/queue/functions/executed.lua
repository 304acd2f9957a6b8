-- emq_executed: the GPU is free, the job's outputs are still being uploaded; claims the next job in the same call.
-- Guarantee: a repeated call changes nothing and gets the same next job (by `claim_token`).
-- Arguments: `job` `token` `timings` `exec_ms` `cold`; `claim 1` `claim_token` and the arguments of a claim.
-- Answer: `ok` `repeated` [`next` <answer of a claim>]; `stale_lease`.
local function executed(keys, argv)
  local u, a = Q.begin(keys, argv, 'max_finishing')
  local r, status = Q.holder(u, a.job, a.token)
  if not r and not status then return { 'stale_lease' } end
  local repeated = not r or r.phase == 'finishing'
  if not repeated then
    if r.phase == 'ahead' then Q.start(u, r) end
    if r.timeout_s then call('ZREM', u.P .. 'deadline', a.job) end
    Q.phase(u, r, 'finishing')
    Q.put(u, r, 'executed_at', u.ms)
    if a.timings then Q.put(u, r, 'timings', a.timings) end
    Q.measure(u, r, a.exec_ms, a.cold)
    call('ZADD', u.P .. 'held:' .. r.instance, u.ms, a.job)
  end
  local answer = Q.claim_next(u, a, { 'ok', 'repeated', repeated and '1' or '0' })
  Q.commit(u)
  return answer
end

define{ function_name = 'emq_executed', callback = executed, flags = { 'allow-oom' } }
