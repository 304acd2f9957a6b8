-- Caps and pauses are lazy: a tenant that may not run keeps its heads until a claim meets one and parks it.

-- Parks a lane's head.
function Q.park(u, class, tenant)
  local P = u.P
  local score = call('ZSCORE', P .. 'h:' .. class, tenant)
  call('ZREM', P .. 'h:' .. class, tenant)
  call('ZADD', P .. 'parked:' .. tenant, score, class)
  Q.pin_class(u, class, 1)
  if not Q.tenant(u, tenant).parked then
    call('HSET', P .. 'tn:' .. tenant, 'parked', '1')
    u.tenants[tenant].parked = true
  end
  call('SREM', P .. 'unpark', tenant)
  Q.best(u, class)
end

-- Brings a tenant's best 8 heads back if it may run; the rest follows when a claim finds nothing, or by the sweep.
function Q.unpark(u, tenant)
  local P, t = u.P, Q.tenant(u, tenant)
  if not t.parked or Q.held_back(u, tenant) then return end
  local classes = call('ZRANGE', P .. 'parked:' .. tenant, 0, 7)
  for _, class in ipairs(classes) do
    call('ZREM', P .. 'parked:' .. tenant, class)
    Q.pin_class(u, class, -1)
  end
  local more = call('EXISTS', P .. 'parked:' .. tenant) == 1
  if not more then
    call('HDEL', P .. 'tn:' .. tenant, 'parked')
    t.parked = false
  end
  for _, class in ipairs(classes) do
    Q.fix(u, class, tenant)
    Q.claimable(u, class)
  end
  call(more and 'SADD' or 'SREM', P .. 'unpark', tenant)
end

-- Brings back more heads of a tenant that may run again; false when there is none.
function Q.unpark_more(u)
  local tenant = call('SRANDMEMBER', u.P .. 'unpark')
  if not tenant then return false end
  if Q.held_back(u, tenant) then
    call('SREM', u.P .. 'unpark', tenant)
    return call('EXISTS', u.P .. 'unpark') == 1
  end
  Q.unpark(u, tenant)
  return true
end
