-- The one place where a job changes its status: index sets, counters and group figures move with it.

local HOME = {
  scheduled = 'w', blocked = 'w', pending = 'w', claimed = 'a', processing = 'a',
  completed = 'f', failed = 'f', cancelled = 'f',
}
Q.HOME = HOME

-- The keys of a tenant's index sets, by status. Most calls are about the same pool and few tenants: theirs are kept.
local KEYS, pool, tenants = {}, nil, 0
local MADE = {
  __index = function(keys, status)
    local home = HOME[status]
    local key = keys.P .. home .. ':' .. keys.tenant .. (home == 'f' and ':' .. status or '')
    keys[status] = key
    return key
  end,
}

local function new_keys(u, tenant)
  if pool ~= u.P or tenants == 512 then KEYS, pool, tenants = {}, u.P, 0 end
  local keys = setmetatable({ P = u.P, tenant = tenant }, MADE)
  KEYS[tenant], tenants = keys, tenants + 1
  return keys
end

local function index(u, r, status)
  local keys = pool == u.P and KEYS[r.tenant] or new_keys(u, r.tenant)
  return keys[status], HOME[status]
end

local function tally(u, r, status, delta)
  Q.count(u, status, delta)
  Q.count_of(u, r.tenant, status, delta)
  if r.group then call('HINCRBY', Q.group_key(u, r.tenant, r.group), status, delta) end
end

function Q.group_key(u, tenant, group)
  return u.P .. 'g:' .. tenant .. ':' .. group
end

-- Counts the bytes that a tenant's waiting jobs take.
local function weigh(u, r, sign)
  Q.count_of(u, r.tenant, 'bytes', sign * (r._bytes or call('STRLEN', u.P .. 'b:' .. r._id)))
end

-- Counts a job in `status` that was in `old`.
local function retally(u, r, old, status)
  local counts, names = u.counts, Q.counters_of(r.tenant)
  local ours_old, ours = names[old], names[status]
  counts[old] = (counts[old] or 0) - 1
  counts[ours_old] = (counts[ours_old] or 0) - 1
  counts[status] = (counts[status] or 0) + 1
  counts[ours] = (counts[ours] or 0) + 1
  if r.group then
    local key = Q.group_key(u, r.tenant, r.group)
    call('HINCRBY', key, old, '-1')
    call('HINCRBY', key, status, '1')
  end
end

-- Adds a new job in its first status.
function Q.enter(u, r, status)
  local key, home = index(u, r, status)
  Q.zadd(u, key, r.arrival, r._id)
  if home == 'f' then Q.zadd(u, u.P .. 'fin:' .. status, u.ms, r._id) end
  if home == 'w' then weigh(u, r, 1) end
  tally(u, r, status, 1)
end

-- Counts new jobs that wait, already in their tenant's list.
function Q.count_entered(u, tenant, jobs, bytes)
  if jobs == 0 then return end
  Q.count(u, 'pending', jobs)
  Q.count_of(u, tenant, 'pending', jobs)
  Q.count_of(u, tenant, 'bytes', bytes)
end

-- Removes a job that is forgotten. Its group still counts it: a group's figures have a life time of their own.
function Q.leave(u, r)
  local key, home = index(u, r, r.status)
  Q.zrem(u, key, r._id)
  if home == 'f' then Q.zrem(u, u.P .. 'fin:' .. r.status, r._id) end
  Q.count(u, r.status, -1)
  Q.count_of(u, r.tenant, r.status, -1)
end

-- Changes the status.
function Q.move(u, r, status)
  local old, id = r.status, r._id
  if old == status then return end
  Q.touch(u, r)
  local old_home, home = HOME[old], HOME[status]
  if old_home ~= home or home == 'f' then
    Q.zrem(u, (index(u, r, old)), id)
    Q.zadd(u, (index(u, r, status)), r.arrival, id)
    if old_home == 'w' then weigh(u, r, -1) end
    if home == 'w' then weigh(u, r, 1) end
    if old_home == 'f' then Q.zrem(u, u.P .. 'fin:' .. old, id) end
    if home == 'f' then Q.zadd(u, u.P .. 'fin:' .. status, u.ms, id) end
  end
  retally(u, r, old, status)
  r.status = status
end
