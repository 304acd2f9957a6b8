-- Waiting jobs: lanes `n:<class>:<tenant>`, the heads of a class's lanes `h:<class>`, best heads `i` and `k:<kind>`.

function Q.member(r)
  local member = r._member
  if not member then
    member = string.format('%012x:', tonumber(r.arrival)) .. r._id
    r._member = member
  end
  return member
end

function Q.lane_class(r)
  return r.variant or r.class
end

function Q.level_of(score)
  return 100 - math.floor(score / Q.LEVEL)
end

local function set_best(u, class, score)
  local P, kind = u.P, Q.class(u, class).kind
  if score then
    call('ZADD', P .. 'i', score, class)
    if kind ~= '' then call('ZADD', P .. 'k:' .. kind, score, class) end
  else
    call('ZREM', P .. 'i', class)
    if kind ~= '' then call('ZREM', P .. 'k:' .. kind, class) end
  end
end

-- Brings a class's entry in the indexes up to its best head.
function Q.best(u, class)
  set_best(u, class, call('ZRANGE', u.P .. 'h:' .. class, '0', '0', 'WITHSCORES')[2])
end

-- The same after the best lane gave its head away: `second` is the score of the lane after it.
function Q.follow(u, class, tenant, second)
  if Q.tenant(u, tenant).parked then return Q.fix(u, class, tenant) end
  local P = u.P
  local score = call('ZRANGE', P .. 'n:' .. class .. ':' .. tenant, '0', '0', 'WITHSCORES')[2]
  if score then
    call('ZADD', P .. 'h:' .. class, score, tenant)
  else
    call('ZREM', P .. 'h:' .. class, tenant)
  end
  if second and (not score or tonumber(second) < tonumber(score)) then score = second end
  set_best(u, class, score)
end

-- Brings a lane's entry in the indexes up to its head (member and score; read, where the caller has not).
function Q.fix(u, class, tenant, head)
  local P = u.P
  head = head or call('ZRANGE', P .. 'n:' .. class .. ':' .. tenant, '0', '0', 'WITHSCORES')
  local parked = Q.tenant(u, tenant).parked and call('ZSCORE', P .. 'parked:' .. tenant, class)
  if parked then
    if head[1] then
      call('ZADD', P .. 'parked:' .. tenant, head[2], class)
    else
      call('ZREM', P .. 'parked:' .. tenant, class)
      Q.pin_class(u, class, -1)
    end
    return
  end
  if head[1] then
    call('ZADD', P .. 'h:' .. class, head[2], tenant)
  else
    call('ZREM', P .. 'h:' .. class, tenant)
  end
  Q.best(u, class)
end

-- Whether no other lane of a class has a head.
function Q.is_alone(u, class, tenant)
  local key = u.P .. 'h:' .. class
  local heads = call('ZCARD', key)
  return heads == 0 or heads == 1 and call('ZSCORE', key, tenant) and true
end

-- Puts a pending job into its lane, at its score. The heads are brought up by `Q.settle`.
function Q.lane_add(u, r)
  local class, score = Q.lane_class(r), tonumber(r.score)
  call('ZADD', u.P .. 'n:' .. class .. ':' .. r.tenant, r.score, Q.member(r))
  local lane, lanes = class .. ':' .. r.tenant, u.lanes
  if not lanes then
    lanes = {}
    u.lanes, u.lane_order = lanes, {}
  end
  local touched = lanes[lane]
  if not touched then
    lanes[lane] = { class, r.tenant, score, r }
    u.lane_order[#u.lane_order + 1] = lane
  else
    touched[3], touched[4] = math.min(touched[3], score), nil
  end
  local v = Q.virtual(u, Q.level_of(score))
  v.waiting = v.waiting + 1
  local aging = Q.setting(u, 'aging_ms')
  if aging > 0 then call('ZADD', u.P .. 'age', 'NX', Q.int(u.now + aging), r._id) end
end

-- Brings up the heads of the lanes that got jobs: only a job that became its lane's head changes an index.
function Q.settle(u)
  if not u.lane_order then return end
  for _, lane in ipairs(u.lane_order) do
    local class, tenant, score = unpack(u.lanes[lane])
    if score < math.huge then
      local head = call('ZRANGE', u.P .. 'n:' .. lane, '0', '0', 'WITHSCORES')
      if head[2] and tonumber(head[2]) >= score then Q.fix(u, class, tenant, head) end
    end
  end
  u.lanes, u.lane_order = false, false
end

-- Takes a job that ends its wait out of its lane; false when it is not in it.
function Q.lane_remove(u, r)
  local class = Q.lane_class(r)
  if call('ZREM', u.P .. 'n:' .. class .. ':' .. r.tenant, Q.member(r)) == 0 then return false end
  Q.fix(u, class, r.tenant)
  local v = Q.virtual(u, Q.level_of(tonumber(r.score)))
  v.waiting = v.waiting - 1
  return true
end
