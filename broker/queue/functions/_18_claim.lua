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

-- The names of a row's values. Those from `job_type` on are left out of a row where they are what most jobs have.
local ROW = {
  'job_id', 'attempt', 'lease', 'priority', 'tenant', 'queued_ms', 'payload', 'repeated', 'status',
  'job_type', 'round', 'timeout_s', 'rules', 'watch', 'trace',
}

-- The pairs of all rows of a call that say nothing else, and the names of a row's values; nothing where there is none.
function Q.row_head(u)
  if not u.rows then return {}, {} end
  return {
    'lease_ms', Q.int(u.lease), 'input_urls', u.input_urls, 'job_type', 'comfyui', 'round', '1', 'timeout_s', '',
    'rules', u.rules, 'watch', '0', 'trace', '',
  }, ROW
end

-- A claimed job and the end that it is fused with (`ok`) as values alone: each text of an answer costs Redis.
local function row(u, r, payload, ended)
  u.rows = true
  local queued_ms, repeated, status = Q.int(r.claimed_at - r.created_at), ended[5] or ended[3], ended[5] and ended[3]
  local rules, watch = Q.tenant(u, r.tenant).rules, Q.watched(u.P, r._id, u.watched, u.now)
  if not (r.job_type or r.round or r.timeout_s or rules or r.trace) and watch == '0' then
    return { 'job', r._id, r.attempt, r.token, r.priority, r.tenant, queued_ms, payload, repeated, status }
  end
  return {
    'job', r._id, r.attempt, r.token, r.priority, r.tenant, queued_ms, payload, repeated, status or '',
    r.job_type or 'comfyui', r.round or '1', r.timeout_s or '', rules or u.rules, watch, r.trace or '',
  }
end

local function assigned(u, r, payload)
  local P, id = u.P, r._id
  if u.ended then return row(u, r, payload, u.ended) end
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

-- The claim that is fused with a job's end; answers that end's answer with `next`, or the row that is both. `more`: as
-- many follow for this worker. `rows`: a claimed job is answered as a row.
function Q.claim_next(u, a, answer, more, rows)
  if a.claim ~= '1' then return answer end
  local w, refused = Q.caller(u, a.worker, a.instance)
  a.job = false -- it names the one that has ended
  Q.cascade_now(u)
  u.ended = rows and answer
  local claimed = w and Q.claim_for(u, w, a, a.claim_token, more) or { refused }
  u.ended = nil
  if rows and claimed[1] == 'job' then return claimed end
  answer[#answer + 1] = 'next'
  answer[#answer + 1] = claimed
  return answer
end
