-- Groups: figures of jobs that were given the same `group` by their tenant.

local DAY = 86400000

function Q.group_members(u, tenant, group)
  return u.P .. 'gm:' .. tenant .. ':' .. group
end

-- A new job joins its group.
function Q.group_add(u, r)
  local key, members = Q.group_key(u, r.tenant, r.group), Q.group_members(u, r.tenant, r.group)
  redis.call('ZADD', members, r.arrival, r._id)
  if redis.call('HINCRBY', key, 'jobs', 1) == 1 then redis.call('HSET', key, 'created_at', u.ms) end
  if redis.call('HINCRBY', key, 'open', 1) == 1 then
    redis.call('PERSIST', key)
    redis.call('PERSIST', members)
  end
end

-- A member ended; with the last one the group's figures get a life time and its summary is published.
function Q.group_ended(u, r)
  local key = Q.group_key(u, r.tenant, r.group)
  if redis.call('HINCRBY', key, 'open', -1) > 0 then return end
  local life = math.max(DAY, Q.setting(u, 'ttl_failed_ms'))
  redis.call('PEXPIRE', key, life)
  redis.call('PEXPIRE', Q.group_members(u, r.tenant, r.group), life)
  local g = Q.pairs_of(redis.call('HGETALL', key))
  redis.call('SPUBLISH', u.P .. 'gv:' .. u.deployment .. ':' .. r.tenant .. ':' .. r.group,
    '{"group":' .. Q.json(r.group) .. ',"jobs":' .. (g.jobs or '0') .. ',"completed":' .. (g.completed or '0')
    .. ',"failed":' .. (g.failed or '0') .. ',"cancelled":' .. (g.cancelled or '0') .. '}')
end

-- A member starts again (a forced retry).
function Q.group_reopened(u, r)
  local key = Q.group_key(u, r.tenant, r.group)
  if redis.call('HINCRBY', key, 'open', 1) == 1 then
    redis.call('PERSIST', key)
    redis.call('PERSIST', Q.group_members(u, r.tenant, r.group))
  end
end
