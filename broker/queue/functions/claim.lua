-- emq_claim: gives a worker the best job that it can run, or the one it names.
-- Guarantee: the same token gives the same job; cost does not grow with the number of waiting jobs.
-- Arguments: `worker` `instance` `token` (drawn by the caller) `job` (optional) `loaded` (lines) `ahead`.
-- Answer: `job` with what the worker needs; `none`; `again`; `paused`; `busy`; `not_found`/`conflict` (a named job);
-- `superseded`; `unknown`.

-- Whether a worker that counts as idle gets nothing again. That changes nothing, so it is found out with few calls,
-- before a unit of work is opened. What a lapsed lease or a delay would give back is not for a worker that can run no
-- class at all; else it has to have been looked at lately.
local function stays_idle(P, a)
  if a.ahead == '1' or a.job or not a.worker or not a.token or a.token == '' then return false end
  local w = call('HMGET', P .. 'wk:' .. a.worker, 'idle', 'instance', 'profile', 'loaded', 'finishing', 'tokens')
  if not w[1] or w[2] ~= a.instance or a.loaded and a.loaded ~= (w[4] or '') or w[5] then return false end
  if w[6] and string.find(w[6], a.token, 1, true) then return false end
  local able = P .. 'ok:' .. w[3]
  if call('SCARD', able) == 0 then return not call('HGET', P .. 'config', 'paused') end
  return call('ZINTERCARD', '2', P .. 'i', able, 'LIMIT', '1') == 0
    and call('EXISTS', P .. 'unpark') == 0 and Q.is_tended(P)
end

local function claim(keys, argv)
  local a = Q.arguments(argv)
  if stays_idle(keys[1], a) then return { 'none' } end
  local u = Q.open(keys[1])
  local w, refused = Q.caller(u, a.worker, a.instance)
  if not w then return { refused } end
  Q.tend(u, true)
  -- The lapsed lease that was taken back may have been the caller's own.
  local answer = w.gone and { 'unknown' } or Q.claim_for(u, w, a, a.token)
  Q.commit(u)
  return answer
end

define{ function_name = 'emq_claim', callback = claim, flags = { 'allow-oom' } }
