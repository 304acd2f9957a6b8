-- Putting right what a consistency check found: the records are believed, indexes and counters follow them.

local ENDS = { 'completed', 'failed', 'cancelled' }

-- Whether the entry was missing.
function Q.put_in_place(u, here, key, score, member)
  if here then return call('ZADD', u.P .. key, score or u.ms, member) == 1 end
  call('ZREM', u.P .. key, member)
  return false
end

-- A pending job waits in its lane, or in `due` while it has `due_at`.
local function place_waiting(u, r)
  local in_lane = r.status == 'pending' and not r.due_at
  Q.put_in_place(u, r.status == 'scheduled' or r.status == 'pending' and r.due_at, 'due', r.due_at, r._id)
  if in_lane and not r.score then Q.put(u, r, 'score', Q.score(u, tonumber(r.priority), r.tenant, r.class)) end
  local class = Q.lane_class(r)
  if in_lane and r.variant and not Q.class(u, class).exists then Q.variant(u, r.class, r.avoid) end
  local was_missing = Q.put_in_place(u, in_lane, 'n:' .. class .. ':' .. r.tenant, r.score, Q.member(r))
  Q.fix(u, class, r.tenant)
  if was_missing then Q.claimable(u, class) end
end

-- Puts a job into the index entries that its record calls for, and takes it out of the others that it could be in. A
-- held job without a live lease goes back.
function Q.repair_job(u, r)
  local id, home, of = r._id, Q.HOME[r.status], ':' .. r.tenant
  Q.put_in_place(u, home == 'w', 'w' .. of, r.arrival, id)
  Q.put_in_place(u, home == 'a', 'a' .. of, r.arrival, id)
  for _, status in ipairs(ENDS) do
    Q.put_in_place(u, r.status == status, 'f' .. of .. ':' .. status, r.arrival, id)
    Q.put_in_place(u, r.status == status, 'fin:' .. status, r.finished_at, id)
  end
  Q.put_in_place(u, home == 'w' and r.expires_at, 'expiry', r.expires_at, id)
  Q.put_in_place(u, r.dead_letter == '1', 'dead', r.finished_at, id)
  if home ~= 'a' then call('ZREM', u.P .. 'deadline', id) end
  place_waiting(u, r)
  Q.index_labels(u, r)
  if home == 'f' then Q.index_end(u, r) end
  if r.status == 'blocked' and r.parents then Q.wait_again(u, r) end
  if home ~= 'a' then
    for _, name in ipairs({ 'phase', 'token', 'instance' }) do Q.put(u, r, name, nil) end
    return
  end
  if r.instance and call('ZSCORE', u.P .. 'leases', r.instance) then
    call('ZADD', u.P .. 'held:' .. r.instance, 'NX', u.ms, id)
  else
    Q.put(u, r, 'instance', r.instance or '')
    Q.put(u, r, 'token', r.token or '')
    Q.lost(u, r)
  end
end

local function set_count(u, field, real)
  if real == 0 then call('HDEL', u.P .. 'count', field) else call('HSET', u.P .. 'count', field, real) end
end

-- Counts a tenant's jobs anew; the cost grows with those that wait or run.
function Q.recount_tenant(u, tenant)
  local P, real, running, bytes = u.P, {}, 0, 0
  for _, home in ipairs({ 'w', 'a' }) do
    for _, id in ipairs(call('ZRANGE', P .. home .. ':' .. tenant, 0, -1)) do
      local got = call('HMGET', P .. 'j:' .. id, 'status', 'phase')
      if got[1] then real[got[1]] = (real[got[1]] or 0) + 1 end
      if home == 'w' then bytes = bytes + call('STRLEN', P .. 'b:' .. id) end
      if home == 'a' and got[2] and got[2] ~= 'finishing' then running = running + 1 end
    end
  end
  for _, status in ipairs(ENDS) do real[status] = call('ZCARD', P .. 'f:' .. tenant .. ':' .. status) end
  for status in pairs(Q.HOME) do set_count(u, tenant .. ':' .. status, real[status] or 0) end
  set_count(u, tenant .. ':running', running)
  set_count(u, tenant .. ':bytes', bytes)
end

-- Adds the tenants' counters up.
function Q.recount_pool(u)
  local sums = {}
  for _, tenant in ipairs(call('SMEMBERS', u.P .. 'tenants')) do
    for status in pairs(Q.HOME) do
      local n = call('HGET', u.P .. 'count', tenant .. ':' .. status)
      sums[status] = (sums[status] or 0) + (n or 0)
    end
  end
  for status in pairs(Q.HOME) do set_count(u, status, sums[status] or 0) end
end

-- Counts the jobs that wait in a level's lanes; `lanes` are `<class>:<tenant>`.
function Q.recount_level(u, level, lanes)
  local from, waiting = (100 - level) * Q.LEVEL, 0
  for _, lane in ipairs(lanes) do
    waiting = waiting + call('ZCOUNT', u.P .. 'n:' .. lane, Q.int(from), '(' .. Q.int(from + Q.LEVEL))
  end
  Q.virtual(u, level).waiting = waiting
end
