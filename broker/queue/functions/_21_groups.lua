-- Groups: figures of jobs that were given the same `group` by their tenant.

local DAY = 86400000

function Q.group_members(u, tenant, group)
  return u.P .. 'gm:' .. tenant .. ':' .. group
end

-- A new job joins its group.
function Q.group_add(u, r)
  local key, members = Q.group_key(u, r.tenant, r.group), Q.group_members(u, r.tenant, r.group)
  call('ZADD', members, r.arrival, r._id)
  if call('HINCRBY', key, 'jobs', 1) == 1 then call('HSET', key, 'created_at', u.ms) end
  if call('HINCRBY', key, 'open', 1) == 1 then
    call('PERSIST', key)
    call('PERSIST', members)
  end
end

-- A member ended; with the last one the group's figures get a life time.
function Q.group_ended(u, r)
  local key = Q.group_key(u, r.tenant, r.group)
  if call('HINCRBY', key, 'open', -1) > 0 then return end
  local life = math.max(DAY, Q.setting(u, 'ttl_failed_ms'))
  call('PEXPIRE', key, life)
  call('PEXPIRE', Q.group_members(u, r.tenant, r.group), life)
  u.group_ends = u.group_ends or {}
  u.group_ends[key] = { r.tenant, r.group }
end

-- Says which groups have no open job any more, now that the call is done (a submit may have added more to one).
function Q.tell_groups(u)
  for key, of in pairs(u.group_ends or {}) do
    local g = Q.pairs_of(call('HGETALL', key))
    if g.open == '0' then
      call('HINCRBY', key, 'ended', 1)
      call('SPUBLISH', u.P .. 'gv:' .. u.deployment .. ':' .. of[1] .. ':' .. of[2],
        '{"group":' .. Q.json(of[2]) .. ',"jobs":' .. (g.jobs or '0') .. ',"completed":' .. (g.completed or '0')
        .. ',"failed":' .. (g.failed or '0') .. ',"cancelled":' .. (g.cancelled or '0') .. '}')
    end
  end
  u.group_ends = nil
end

-- A member starts again (a forced retry).
function Q.group_reopened(u, r)
  local key = Q.group_key(u, r.tenant, r.group)
  if call('HINCRBY', key, 'open', 1) == 1 then
    call('PERSIST', key)
    call('PERSIST', Q.group_members(u, r.tenant, r.group))
  end
end
