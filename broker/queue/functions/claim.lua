-- emq_claim: gives a worker the best job that it can run, or the one it names.
-- Guarantee: the same token gives the same job; cost does not grow with the number of waiting jobs.
-- Arguments: `worker` `instance` `token` (drawn by the caller) `job` (optional) `loaded` (lines) `ahead` `standing` (1:
-- where there is nothing, the claim stays, and a submit may answer it in the inbox).
-- Answer: `job` with what the worker needs; `none` `standing` (1: it stays); `again`; `paused`; `busy`;
-- `not_found`/`conflict` (a named job); `superseded`; `unknown`.

-- Whether a worker that counts as idle gets nothing again. That changes nothing, so it is found out with few calls,
-- before a unit of work is opened. What a lapsed lease or a delay would give back is not for a worker that can run no
-- class at all; else it has to have been looked at lately.
local function stays_idle(P, a, w)
  if not w or not w.idle or w.instance ~= a.instance or w.finishing then return false end
  if a.ahead == '1' or a.job or not a.token or a.token == '' then return false end
  if a.loaded and a.loaded ~= (w.loaded or '') or a.standing == '1' and a.token ~= w.idle then return false end
  if w.tokens and string.find(w.tokens, a.token, 1, true) then return false end
  local able = P .. 'ok:' .. w.profile
  if call('SCARD', able) == 0 then return not call('HGET', P .. 'config', 'paused') end
  return call('ZINTERCARD', '2', P .. 'i', able, 'LIMIT', '1') == 0
    and call('EXISTS', P .. 'unpark') == 0 and Q.is_tended(P)
end

local function claim(keys, argv)
  local a = Q.arguments(argv)
  local read = { P = keys[1], workers = {} }
  local w = a.worker and Q.worker(read, a.worker)
  if stays_idle(keys[1], a, w) then return { 'none', 'standing', a.standing or '0' } end
  local u = Q.open(keys[1])
  u.workers = read.workers
  local refused
  w, refused = Q.caller(u, a.worker, a.instance)
  if not w then return { refused } end
  Q.tend(u, true)
  -- The lapsed lease that was taken back may have been the caller's own.
  local answer = w.gone and { 'unknown' } or Q.claim_for(u, w, a, a.token)
  Q.commit(u)
  return answer
end

define{ function_name = 'emq_claim', callback = claim, flags = { 'allow-oom' } }
