-- Waiting jobs: lanes `n:<class>:<tenant>`, the heads of a class's lanes `h:<class>`, best heads `i` and `k:<kind>`.

function Q.member(r)
  local member = r._member
  if not member then
    member = string.format('%012x:%s', r.arrival, r._id)
    r._member = member
  end
  return member
end

function Q.lane_class(r)
  return r.variant or r.class
end

-- The key of a lane. Many calls are about jobs of the same one: the last is kept.
local last_P, last_class, last_tenant, last_key

function Q.lane_key(u, class, tenant)
  if last_class ~= class or last_tenant ~= tenant or last_P ~= u.P then
    last_P, last_class, last_tenant, last_key = u.P, class, tenant, u.P .. 'n:' .. class .. ':' .. tenant
  end
  return last_key
end

function Q.level_of(score)
  return 100 - (score - score % Q.LEVEL) / Q.LEVEL
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
  Q.led_by(u, class, tenant, call('ZRANGE', Q.lane_key(u, class, tenant), '0', '0', 'WITHSCORES')[2], second)
end

-- Notes the score of a lane's new head (nil: it is empty) where `second` is that of the class's next best lane.
function Q.led_by(u, class, tenant, score, second)
  local P = u.P
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
  if not head then
    local lane = Q.lane_key(u, class, tenant)
    Q.write_set(u, lane)
    head = call('ZRANGE', lane, '0', '0', 'WITHSCORES')
  end
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

-- Puts a pending job into its lane, at its score. The lane is written, and the heads are brought up, by `Q.settle`.
function Q.lane_add(u, r)
  local class, tenant, score, lanes = Q.lane_class(r), r.tenant, tonumber(r.score), u.lanes
  local lane = Q.lane_key(u, class, tenant)
  Q.zadd(u, lane, r.score, Q.member(r))
  if not lanes then
    lanes = {}
    u.lanes, u.lane_order = lanes, {}
  end
  local touched = lanes[lane]
  if not touched then
    lanes[lane] = { class, tenant, score, r }
    u.lane_order[#u.lane_order + 1] = lane
  else
    if score < touched[3] then touched[3] = score end
    touched[4] = nil
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
    Q.write_set(u, lane)
    if score < math.huge then
      local head = call('ZRANGE', lane, '0', '0', 'WITHSCORES')
      if head[2] and tonumber(head[2]) >= score then Q.fix(u, class, tenant, head) end
    end
  end
  u.lanes, u.lane_order = false, false
end

-- Takes a job that ends its wait out of its lane; false when it is not in it.
function Q.lane_remove(u, r)
  local class = Q.lane_class(r)
  local lane = Q.lane_key(u, class, r.tenant)
  Q.write_set(u, lane)
  if call('ZREM', lane, Q.member(r)) == 0 then return false end
  Q.fix(u, class, r.tenant)
  local v = Q.virtual(u, Q.level_of(tonumber(r.score)))
  v.waiting = v.waiting - 1
  return true
end
