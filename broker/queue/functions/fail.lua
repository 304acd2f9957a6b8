-- emq_fail: a claim ended without a result; claims the next job in the same call.
-- Guarantee: retried by the class of the error while attempts are left; a hand-back counts no attempt; a requested
-- cancel wins; a repeated call with the token gets the same answer.
-- Arguments: `job` `token` `code` `error` (JSON) `hand_back` `missing` (atoms) `retry` (`auto`, `no`) `spans` (JSON,
--   opaque: the steps, for a trace), those of a claim
-- Answer: `ok` `status` `will_retry` `repeated` [`next` <answer of a claim>]; `stale_lease`.

-- The atoms become requirements of the job, and its worker is known not to have them.
local function require_atoms(u, r, w, atoms)
  local c = call('HMGET', u.P .. 'c:' .. r.class, 'atoms', 'vram_mb', 'kind')
  local all, seen = Q.lines(c[1]), {}
  for _, atom in ipairs(all) do seen[atom] = true end
  for _, atom in ipairs(atoms) do
    if not seen[atom] then all[#all + 1] = atom end
    seen[atom] = true
  end
  table.sort(all)
  local text = table.concat(all, '\n')
  local class = string.sub(redis.sha1hex(text .. '\n' .. (c[2] or '0')), 1, 16)
  if not Q.class(u, class).exists then Q.new_class(u, class, text, c[2] or '0', c[3] or '') end
  Q.put(u, r, 'class', class)
  if r.variant then Q.put(u, r, 'variant', nil) end
  if not w or w.gone then return end
  local lesser = Q.lesser_profile(u, w.profile, atoms)
  local idle = w.idle
  Q.unset_idle(u, w)
  Q.join_profile(u, lesser)
  Q.leave_profile(u, w.profile)
  Q.put(u, w, 'profile', lesser)
  if idle then Q.set_idle(u, w) end
end

-- This worker cannot run it: it goes elsewhere.
local function hand_back(u, r, a, error)
  if Q.cancelled(u, r) then return 'cancelled', false end
  r._why = 'handed_back'
  local w, atoms = Q.worker(u, r.worker_id), Q.lines(a.missing)
  if Q.add(u, r, 'handbacks', 1) >= Q.setting(u, 'max_handbacks') then
    Q.let_go(u, r, 'failed')
    Q.fail_finally(u, r, 'validation_failed', error)
    return 'failed', false
  end
  Q.let_go(u, r, 'pending', true)
  Q.add(u, r, 'uncounted', 1)
  if #atoms > 0 then require_atoms(u, r, w, atoms) else Q.avoid(u, r, w and w._id or r.worker_id) end
  Q.put_back(u, r, 'handed_back')
  return 'pending', true
end

local function fail(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r, status, will_retry = Q.holder(u, a.job, a.token)
  local repeated = not r
  if repeated and not status then return { 'stale_lease' } end
  if not repeated then
    r._spans = a.spans
    local code = a.code and a.code ~= '' and a.code or 'node_error'
    local error = a.error and a.error ~= '' and a.error or Q.error(code, 'The worker gave no reason.')
    local again
    if a.hand_back == '1' then
      status, again = hand_back(u, r, a, error)
    else
      status, again = Q.failed(u, r, code, error, a.retry ~= 'no')
    end
    will_retry = again and '1' or '0'
  end
  local answer = Q.claim_next(u, a,
    { 'ok', 'status', status, 'will_retry', will_retry, 'repeated', repeated and '1' or '0' })
  Q.commit(u)
  return answer
end

define{ function_name = 'emq_fail', callback = fail, flags = { 'allow-oom' } }
