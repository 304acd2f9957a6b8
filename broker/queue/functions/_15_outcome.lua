-- What becomes of a job whose claim did not lead to a result.

local NEVER = { validation_failed = true, interrupted = true }
local FIRST_MAX_MS, MAX_MS = 5000, 300000

-- The pause before a retry: doubled for each failure, spread by the job's own hash.
local function pause_ms(u, r, failures)
  local spread = tonumber(string.sub(redis.sha1hex(r._id .. ':' .. r.attempt), 1, 4), 16) / 65535
  local ms = Q.setting(u, 'backoff_ms') * 2 ^ math.min(failures - 1, 16)
  return math.floor(math.min(ms, failures <= 1 and FIRST_MAX_MS or MAX_MS) * (0.75 + spread / 4))
end

local function attempts_left(r)
  return tonumber(r.attempt) - tonumber(r.uncounted or 0) < tonumber(r.max_attempts or 3)
end

-- Ends the hold as cancelled when that was asked for.
function Q.cancelled(u, r)
  if not r.cancel then return false end
  r._why = r.cancel
  Q.let_go(u, r, 'cancelled')
  Q.end_cancelled(u, r, r.cancel)
  return true
end

-- A failed attempt. Answers the status and whether it is tried again.
function Q.failed(u, r, code, error, retry)
  if Q.cancelled(u, r) then return 'cancelled', false end
  r._why = code
  local failures = Q.add(u, r, 'failures', 1)
  if not retry or NEVER[code] or not attempts_left(r) then
    Q.let_go(u, r, 'failed')
    Q.fail_finally(u, r, code, error)
    return 'failed', false
  end
  local worker = r.worker_id
  Q.let_go(u, r, 'pending', true)
  Q.log_failure(u, r, error, true)
  Q.put(u, r, 'error', error)
  Q.put(u, r, 'error_code', code)
  Q.avoid(u, r, worker, code == 'out_of_memory')
  Q.count(u, 'retried_total', 1)
  if r.hook then Q.outbox(u, r, 'retrying') end
  Q.put_back(u, r, code, u.now + pause_ms(u, r, failures))
  return 'pending', true
end

-- Whom a job leaves alone that had too little VRAM there: all with no more than that, if a live worker has more; if
-- none has, those that it left alone already.
local function no_larger(u, r, w)
  local before = tonumber(string.match(r.avoid or '', '^>(%d+)$'))
  for _, vram_mb in ipairs({ math.max(before or 0, Q.vram_mb(u, w.profile)), before }) do
    if Q.served(u, r.class, nil, vram_mb) then return '>' .. Q.int(vram_mb) end
  end
  return nil
end

-- A job is kept from a worker as long as another can run it; from one that was too `small`, and others like it, as long
-- as a larger one can.
function Q.avoid(u, r, worker, small)
  local w = Q.worker(u, worker)
  local profile = w and not w.gone and w.profile
  local whom = small and profile and no_larger(u, r, w)
  if not whom and Q.served(u, r.class, profile) then whom = worker end
  if not whom then return end
  Q.put(u, r, 'avoid', whom)
  Q.put(u, r, 'variant', Q.variant(u, r.class, whom))
end

-- A job that goes back unstarted counts no attempt. `told`: its worker asked for it and hears so again when it repeats.
function Q.released(u, r, reason, told)
  if Q.cancelled(u, r) then return 'cancelled' end
  r._why = reason
  Q.let_go(u, r, told and 'pending' or nil)
  Q.add(u, r, 'uncounted', 1)
  Q.put_back(u, r, reason)
  return 'pending'
end

-- The node that ran when a worker was lost, as JSON, from the last progress of this attempt that was stored.
local function last_node(u, r)
  local stored = r.stored_progress and call('GET', u.P .. 'pr:' .. r._id)
  local good, data = pcall(cjson.decode, string.match(stored or '', '\n(.*)$') or '{}')
  local node = good and type(data) == 'table' and tostring(data.attempt) == r.attempt and data.node
  if type(node) ~= 'table' then return 'null' end
  local function text(value)
    return Q.json(type(value) == 'string' and string.sub(value, 1, 128) or nil)
  end
  return '{"id":' .. text(node.id) .. ',"class_type":' .. text(node.class_type) .. '}'
end

-- Keeps what is known of a crash: who was lost, in which attempt, when, at which node.
local function note_crash(u, r)
  local crash = '{"worker_id":' .. Q.json(r.worker_id) .. ',"attempt":' .. r.attempt .. ',"at":' .. Q.int(u.now)
    .. ',"node":' .. last_node(u, r) .. '}'
  Q.put(u, r, 'crash_log', (r.crash_log and r.crash_log .. ',' or '') .. crash)
end

local function die(u, r, crashes)
  local details = '{"crashes":' .. crashes .. ',"worker_id":' .. Q.json(r.worker_id)
    .. ',"attempt":' .. r.attempt .. ',"crash_log":[' .. (r.crash_log or '') .. ']}'
  Q.let_go(u, r)
  Q.fail_finally(u, r, 'worker_lost', Q.error('worker_lost', 'The worker was lost while it ran this job.', details),
    crashes > 0)
end

-- Its worker is gone. Before the start that is no attempt, while running it is a crash, while finishing an attempt.
function Q.lost(u, r)
  Q.count(u, 'lost_total', 1)
  if Q.cancelled(u, r) then return end
  r._why = 'worker_lost'
  if r.phase == 'ahead' then
    Q.add(u, r, 'uncounted', 1)
  elseif r.phase == 'running' then
    local crashes = Q.add(u, r, 'crashes', 1)
    note_crash(u, r)
    if crashes >= Q.setting(u, 'max_crashes') then return die(u, r, crashes) end
  elseif not attempts_left(r) then
    return die(u, r, 0)
  end
  Q.let_go(u, r)
  Q.put_back(u, r, 'worker_lost')
end
