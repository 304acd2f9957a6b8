-- emq_executed: the GPU is free, the job's outputs are still being uploaded; claims the next job in the same call.
-- Guarantee: a repeated call changes nothing and gets the same next job (by `claim_token`).
-- Arguments: `job` `token` `timings` `exec_ms` `cold`; `claim 1` `claim_token` and the arguments of a claim.
-- Answer: `ok` `repeated` [`next` <answer of a claim>]; `stale_lease`.
local function executed(keys, argv)
  local u, a = Q.begin(keys, argv, 'max_finishing')
  local answer = Q.executed(u, a)
  if answer[1] == 'ok' then
    Q.claim_next(u, a, answer)
    Q.commit(u)
  end
  return answer
end

define{ function_name = 'emq_executed', callback = executed, flags = { 'allow-oom' } }
