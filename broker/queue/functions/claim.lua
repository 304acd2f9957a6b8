-- emq_claim: gives a worker the best job that it can run, or the one it names.
-- Guarantee: the same token gives the same job; cost does not grow with the number of waiting jobs.
-- Arguments: `worker` `instance` `token` (drawn by the caller) `job` (optional) `loaded` (lines) `ahead`.
-- Answer: `job` with what the worker needs; `none`; `again`; `paused`; `busy`; `not_found`/`conflict` (a named job);
-- `superseded`; `unknown`.
local function claim(keys, argv)
  local u, a = Q.begin(keys, argv)
  local w, refused = Q.caller(u, a.worker, a.instance)
  if not w then return { refused } end
  Q.tend(u, 2000)
  -- The lapsed lease that was taken back may have been the caller's own.
  local answer = w.gone and { 'unknown' } or Q.claim_for(u, w, a, a.token)
  Q.commit(u)
  return answer
end

redis.register_function{ function_name = 'emq_claim', callback = claim, flags = { 'allow-oom' } }
