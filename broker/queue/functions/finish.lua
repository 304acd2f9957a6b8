-- emq_finish: a job is completed, its outputs are stored; claims the next job in the same call.
-- Guarantee: exactly one outcome; a requested cancel wins; a repeated call with the token gets the same answer.
-- Arguments: `job` `token` `result` (JSON, opaque) `exec_ms` `cold` `spans` (JSON, opaque: the steps, for a
--   trace); `claim 1` `claim_token` and those of a claim.
-- Answer: `ok` `status` `repeated` [`next` <answer of a claim>]; `stale_lease`.
local function finish(keys, argv)
  local u, a = Q.begin(keys, argv, 'ttl_completed_ms')
  local r, status = Q.holder(u, a.job, a.token)
  local repeated = not r
  if repeated and not status then return { 'stale_lease' } end
  if not repeated then r._spans = a.spans end
  if not repeated and Q.cancelled(u, r) then
    status = 'cancelled'
  elseif not repeated then
    if r.phase == 'ahead' then Q.start(u, r) end
    if r.executed_at then
      Q.observe(u, 'upload', u.now - r.executed_at)
    else
      Q.measure(u, r, a.exec_ms, a.cold)
    end
    Q.let_go(u, r, 'completed')
    Q.complete(u, r, a.result and a.result ~= '' and a.result or '{}')
    status = 'completed'
  end
  local answer = Q.claim_next(u, a, { 'ok', 'status', status, 'repeated', repeated and '1' or '0' })
  Q.commit(u)
  return answer
end

define{ function_name = 'emq_finish', callback = finish, flags = { 'allow-oom' } }
