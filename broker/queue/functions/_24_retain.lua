-- Retention: what the sweep forgets.

local SEARCHED, UNMATCHED = 500, 400 -- looks for tenants, and profiles that lose classes, in one sweep
local CLASS_LIFE_MS, VARIANT_LIFE_MS, WORKER_LIFE_MS = 30 * 86400000, 3600000, 3600000

-- Forgets a finished job: record, log, index entries, counters.
function Q.forget(u, id, status)
  local P = u.P
  local r = Q.job(u, id)
  call('UNLINK', P .. 'j:' .. id, P .. 'b:' .. id, P .. 'e:' .. id, P .. 'pr:' .. id, P .. 'kids:' .. id)
  call('ZREM', P .. 'dead', id)
  if r and r.status == status then
    if r.group then call('ZREM', Q.group_members(u, r.tenant, r.group), id) end
    Q.unindex(u, r)
    Q.leave(u, r)
    u.jobs[id] = nil
    return
  end
  -- The record went first (no sweep for longer than its slack): its tenant has to be looked for.
  call('ZREM', P .. 'fin:' .. status, id)
  Q.count(u, status, -1)
  for _, tenant in ipairs(call('SMEMBERS', P .. 'tenants')) do
    u.searched = (u.searched or 0) + 1
    if call('ZREM', P .. 'f:' .. tenant .. ':' .. status, id) == 1 then
      Q.count(u, tenant .. ':' .. status, -1)
      break
    end
  end
end

-- Trims one status by age and by number, the oldest first; also answers whether that was all.
local function trim(u, status, limit)
  local key, most, trimmed = u.P .. 'fin:' .. status, Q.setting(u, 'max_finished'), 0
  local before = u.now - Q.setting(u, 'ttl_' .. status .. '_ms')
  local old = call('ZRANGEBYSCORE', key, '-inf', before, 'LIMIT', 0, limit)
  local over = most > 0 and call('ZCARD', key) - most or 0
  if over > #old then old = call('ZRANGE', key, 0, math.min(over, limit) - 1) end
  for _, id in ipairs(old) do
    Q.forget(u, id, status)
    trimmed = trimmed + 1
    if (u.searched or 0) > SEARCHED then return trimmed, false end
  end
  return trimmed, trimmed < limit
end

-- Trims up to `limit` finished jobs; of each status one at least.
function Q.trim_finished(u, limit)
  local trimmed, finished = 0, true
  for _, status in ipairs({ 'completed', 'failed', 'cancelled' }) do
    local n, all = trim(u, status, math.max(1, limit - trimmed))
    trimmed, finished = trimmed + n, finished and all
  end
  return trimmed, finished
end

local function forget_class(u, class, profiles)
  local P = u.P
  for _, profile in ipairs(profiles) do
    call('SREM', P .. 'ok:' .. profile, class)
  end
  call('ZREM', P .. 'classes', class)
  call('HDEL', P .. 'match', 'c:' .. class)
  call('DEL', P .. 'c:' .. class)
  u.classes[class] = nil
end

-- Forgets classes that nothing used for long, and variants soon; those with waiting jobs stay.
function Q.forget_classes(u, limit)
  local P, kept, gone = u.P, 0, 0
  local profiles = call('ZRANGE', P .. 'profiles', 0, 199)
  local old = call('ZRANGEBYSCORE', P .. 'classes', '-inf', u.now - VARIANT_LIFE_MS, 'LIMIT', 0, limit)
  for _, class in ipairs(old) do
    local c = call('HMGET', P .. 'c:' .. class, 'base', 'pinned', 'since')
    local age = u.now - call('ZSCORE', P .. 'classes', class)
    local busy = call('EXISTS', P .. 'h:' .. class) == 1 or tonumber(c[2] or 0) > 0
      or (c[1] and u.now - tonumber(c[3] or 0) < VARIANT_LIFE_MS)
    if not busy and (c[1] or age > CLASS_LIFE_MS) and gone * #profiles < UNMATCHED then
      forget_class(u, class, profiles)
      gone = gone + 1
    else
      kept = kept + 1
    end
  end
  return kept
end

-- Forgets workers that were gone for an hour. One that has jobs, which wait for it to come back, stays until they go.
function Q.forget_workers(u, limit)
  local P = u.P
  local old = call('ZRANGEBYSCORE', P .. 'workers', '-inf', u.now - WORKER_LIFE_MS, 'LIMIT', 0, limit)
  for _, name in ipairs(old) do
    local w = Q.worker(u, name)
    if not w or w.gone and call('EXISTS', P .. 'held:' .. w.instance) == 0 then call('ZREM', P .. 'workers', name) end
  end
end

-- Whether nothing needs a finish tag that virtual time has passed. That of a lane keeps later jobs behind those that
-- wait in it, so it stays as long as one does.
local function is_idle_tag(u, tag)
  if string.sub(tag, 1, 2) == 't:' then return true end
  local tenant, class = string.match(tag, '^c:(.*):([^:]*)$')
  return tenant and call('EXISTS', Q.lane_key(u, class, tenant)) == 0
end

-- Drops finish tags that virtual time has passed, a few of one level a sweep.
function Q.prune_tags(u)
  local P = u.P
  local level = call('SRANDMEMBER', P .. 'levels')
  if not level then return end
  local at = call('HMGET', P .. 'config', 'prune_level', 'prune_cursor')
  local cursor = at[1] == level and at[2] or '0'
  local part = call('HSCAN', P .. 'v:' .. level, cursor, 'COUNT', 100)
  local v, gone = tonumber(call('HGET', P .. 'v:' .. level, 'V') or 0), {}
  for i = 1, math.min(#part[2], 1000), 2 do
    local tag, at_tag = part[2][i], tonumber(part[2][i + 1])
    if string.find(tag, '^[tc]:') and at_tag <= v and is_idle_tag(u, tag) then gone[#gone + 1] = tag end
  end
  if #gone > 0 then call('HDEL', P .. 'v:' .. level, unpack(gone)) end
  call('HSET', P .. 'config', 'prune_level', level, 'prune_cursor', part[1])
end
