-- Reading records. Each is read once a call and kept in the unit of work.

-- A job's whole record; nil when there is none.
function Q.job(u, id)
  local r = u.jobs[id]
  if r == nil then
    local key = u.P .. 'j:' .. id
    setresp(3) -- a table by name, where RESP2 has a list that grows in steps
    r = call('HGETALL', key).map
    setresp(2)
    r._id, r._key = id, key
    if not r.status then return nil end
    u.jobs[id] = r
  end
  return r
end

-- A job that `tenant` may see (empty: any tenant's).
function Q.job_of(u, id, tenant)
  if not id then return nil end
  local r = Q.job(u, id)
  if r and tenant and tenant ~= '' and r.tenant ~= tenant then return nil end
  return r
end

-- What a worker is doing, as people see it; nil: it is gone.
function Q.state(w)
  if w.gone then return nil end
  if w.drain then return 'draining' end
  if w.paused then return 'paused' end
  if w.status == 'unhealthy' or w.status == 'draining' then return w.status end
  if w.running or w.ahead or w.finishing or w.status == 'busy' then return 'busy' end
  return 'idle'
end

-- The part of a worker's record that the functions work with; nil when there is none.
function Q.worker(u, id)
  local w = u.workers[id]
  if w == nil then
    local key = u.P .. 'wk:' .. id
    local v = call('HMGET', key, 'instance', 'profile', 'slots', 'status', 'paused', 'drain', 'running', 'ahead',
      'finishing', 'tokens', 'loaded', 'idle', 'kind', 'gone', 'beat')
    if not v[1] then return nil end
    w = {
      _id = id, _key = key, _is_worker = true, instance = v[1], profile = v[2] or nil, slots = v[3] or nil,
      status = v[4] or nil, paused = v[5] or nil, drain = v[6] or nil, running = v[7] or nil, ahead = v[8] or nil,
      finishing = v[9] or nil, tokens = v[10] or nil, loaded = v[11] or nil, idle = v[12] or nil, kind = v[13] or nil,
      gone = v[14] or nil, beat = v[15] or nil,
    }
    w._state = Q.state(w)
    u.workers[id] = w
  end
  return w
end

-- The worker behind a call: record, or nil and the refusal.
function Q.caller(u, id, instance)
  local w = id and Q.worker(u, id)
  if not w or w.gone then return nil, 'unknown' end
  if w.instance ~= instance then return nil, 'superseded' end
  return w
end

-- A class's kind and statistics; `exists` says whether it is known.
function Q.class(u, name)
  local c = u.classes[name]
  if c == nil then
    local v = call('HMGET', u.P .. 'c:' .. name, 'used', 'kind', 'run', 'cold', 'passed', 'runs', 'measured')
    c = {
      exists = v[1] and true, used = tonumber(v[1] or 0), kind = v[2] or '', run = tonumber(v[3] or nil),
      cold = tonumber(v[4] or nil), passed = tonumber(v[5] or nil), runs = tonumber(v[6] or 0),
      measured = tonumber(v[7] or 0),
    }
    u.classes[name] = c
  end
  return c
end

-- A tenant's limits.
function Q.tenant(u, name)
  local t = u.tenants[name]
  if t == nil then
    -- Most tenants have no limits, so this is cheaper than asking for each.
    local v = call('HGETALL', u.P .. 'tn:' .. name)
    if v[1] then
      v = Q.pairs_of(v)
      t = {
        weight = tonumber(v.weight or 1), max_running = tonumber(v.max_running or u.tenant_running),
        paused = v.paused == '1', max_queued = tonumber(v.max_queued or 0), parked = v.parked == '1', rules = v.rules,
      }
    else
      t = { weight = 1, max_running = u.tenant_running, paused = false, max_queued = 0, parked = false }
    end
    u.tenants[name] = t
  end
  return t
end

-- A counter with what this call has added to it.
function Q.counter(u, field)
  return tonumber(call('HGET', u.P .. 'count', field) or 0) + (u.counts[field] or 0)
end

-- Whether a paused or full tenant keeps its jobs back.
function Q.held_back(u, name)
  local t = Q.tenant(u, name)
  return t.paused or (t.max_running > 0 and Q.counter(u, name .. ':running') >= t.max_running)
end

-- The holder's record behind a token: r, w; or nil and what an ended claim with this token was told.
function Q.holder(u, job, token)
  local r = job and Q.job(u, job)
  if not r or not token or token == '' then return nil end
  if r.token == token and (r.status == 'claimed' or r.status == 'processing') then return r end
  local status, will_retry = string.match(r.done or '', '^' .. token:gsub('%W', '%%%0') .. ' (%S+) (%S)$')
  if status then return nil, status, will_retry end
  return nil
end
