-- emq_finish: a job is completed, its outputs are stored; claims the next job in the same call.
-- Guarantee: exactly one outcome; a requested cancel wins; a repeated call with the token gets the same answer.
-- Arguments: `job` `token` `result` (JSON, opaque) `exec_ms` `cold` `spans` (JSON, opaque: the steps, for a
--   trace); `claim 1` `claim_token` and those of a claim.
-- Answer: `ok` `status` `repeated` [`next` <answer of a claim>]; `stale_lease`.
local function finish(keys, argv)
  local u, a = Q.begin(keys, argv, 'ttl_completed_ms')
  local answer = Q.finished(u, a)
  if answer[1] == 'ok' then
    Q.claim_next(u, a, answer)
    Q.commit(u)
  end
  return answer
end

define{ function_name = 'emq_finish', callback = finish, flags = { 'allow-oom' } }
