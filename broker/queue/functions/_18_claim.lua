-- A claim, on its own or fused with the end of another job.

-- Why a worker gets nothing now, whatever waits; nil when it may.
function Q.refusal(u, w, ahead)
  if u.paused or w.paused or w.drain then return { 'paused' } end
  local slots, held = tonumber(w.slots or 1), (w.running or 0) + (w.ahead or 0)
  if ahead and (tonumber(w.ahead or 0) > 0 or held > slots) or not ahead and held >= slots then return { 'busy' } end
  if w.finishing and tonumber(w.finishing) >= Q.setting(u, 'max_finishing') then return { 'busy' } end
  return nil
end

local function payload_of(u, r)
  local payload = call('GETRANGE', u.P .. 'b:' .. r._id, r.spec_len or '0', '-1')
  r._bytes = #payload + (r.spec_len or 0)
  return payload
end

local function assigned(u, r, payload)
  local P, id = u.P, r._id
  return {
    'job', 'job_id', id, 'attempt', r.attempt, 'lease', r.token, 'lease_ms', Q.int(u.lease), 'job_type',
    r.job_type or 'comfyui',
    'priority', r.priority, 'tenant', r.tenant, 'round', r.round or '1', 'timeout_s', r.timeout_s or '',
    'rules', Q.tenant(u, r.tenant).rules or u.rules, 'input_urls', u.input_urls,
    'queued_ms', Q.int(r.claimed_at - r.created_at),
    'watch', Q.watched(P, id, u.watched, u.now), 'trace', r.trace or '',
    'payload', payload,
  }
end

-- A named job, if the worker may have it.
local function named(u, w, id)
  local r = Q.job(u, id)
  if not r then return nil, { 'not_found' } end
  local class = Q.lane_class(r)
  if r.status ~= 'pending' or r.due_at then return nil, { 'conflict', 'reason', 'state', 'status', r.status } end
  if call('SISMEMBER', u.P .. 'ok:' .. w.profile, class) == 0 then
    return nil, { 'conflict', 'reason', 'requirements', 'status', r.status }
  end
  if Q.held_back(u, r.tenant) then return nil, { 'conflict', 'reason', 'tenant', 'status', r.status } end
  Q.settle(u)
  call('ZREM', u.P .. 'n:' .. class .. ':' .. r.tenant, Q.member(r))
  Q.fix(u, class, r.tenant)
  Q.advance(u, tonumber(r.score))
  if r.expires_at then call('ZREM', u.P .. 'expiry', r._id) end
  return r
end

-- Keeps what the worker says it has loaded.
function Q.note_loaded(u, w, loaded)
  if loaded and loaded ~= (w.loaded or '') then Q.put(u, w, 'loaded', loaded ~= '' and loaded or nil) end
end

-- Claims for a worker whose record is at hand.
function Q.claim_for(u, w, a, token, more)
  if not token or token == '' then return { 'invalid', 'argument', 'token' } end
  local before = Q.claimed_before(w, token)
  if before then
    local r = Q.job(u, before)
    if not r or r.token ~= token then return { 'none' } end
    Q.noticed(u, r)
    return assigned(u, r, payload_of(u, r))
  end
  Q.note_loaded(u, w, a.loaded)
  local ahead = a.ahead == '1'
  local refused = Q.refusal(u, w, ahead)
  if refused then return refused end
  local r, why
  if a.job and a.job ~= '' then
    r, why = named(u, w, a.job)
    if not r then return why end
  else
    r, why = Q.next_job(u, w, more)
    if not r then
      if why ~= 'none' or ahead then return { why } end
      Q.set_idle(u, w, a.standing == '1' and token)
      return { why, 'standing', a.standing or '0' }
    end
  end
  Q.noticed(u, r)
  return Q.assign(u, r, w, token)
end

-- Gives a worker a job that has left its lane; answers what it needs.
function Q.assign(u, r, w, token)
  Q.unset_idle(u, w)
  local payload = payload_of(u, r)
  Q.take(u, r, w, token)
  Q.judge_wait(u, r)
  local kind = Q.class(u, Q.lane_class(r)).kind
  Q.note_models(u, r, kind)
  if kind ~= (w.kind or '') then Q.put(u, w, 'kind', kind ~= '' and kind or nil) end
  Q.update(u, r)
  return assigned(u, r, payload)
end

-- The claim that is fused with a job's end; adds `next` to the answer. `more`: as many follow for this worker.
function Q.claim_next(u, a, answer, more)
  if a.claim ~= '1' then return answer end
  local w, refused = Q.caller(u, a.worker, a.instance)
  a.job = nil
  Q.cascade_now(u)
  answer[#answer + 1] = 'next'
  answer[#answer + 1] = w and Q.claim_for(u, w, a, a.claim_token, more) or { refused }
  return answer
end
