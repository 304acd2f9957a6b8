-- Start-time fair queueing: the virtual time V of each priority level and the finish tags F of its tenants.

-- A level's virtual time, read once a call and written by `Q.commit`; with two finish tags, if they are named.
function Q.virtual(u, level, t, c)
  local v = u.levels[level]
  if v == nil then
    local key = u.P .. 'v:' .. level
    local got = t and call('HMGET', key, 'V', 'waiting', t, c) or call('HMGET', key, 'V', 'waiting')
    local stored = tonumber(got[1] or nil)
    v = {
      stored = stored, V = stored or tonumber(call('HGET', u.P .. 'vt', level) or Q.FIRST_TAG),
      waiting = tonumber(got[2] or 0), read = t and { [t] = got[3] or '0', [c] = got[4] or '0' } or {},
      set = { a = nil, b = nil },
    }
    u.levels[level] = v
  end
  return v
end

-- The level's clock follows the jobs that are taken; it never falls.
function Q.advance(u, score)
  local v = Q.virtual(u, Q.level_of(score))
  local tag = score % Q.LEVEL
  if tag > v.V then v.V = tag end
  v.waiting = v.waiting - 1
end

-- The finish tags of a tenant and of its class.
local function finish_tags(u, v, level, t, c)
  if v.stored and not (v.read[t] and v.read[c]) then
    local got = call('HMGET', u.P .. 'v:' .. level, t, c)
    v.read[t], v.read[c] = got[1] or '0', got[2] or '0'
  end
  return v.set[t] or tonumber(v.read[t] or 0), v.set[c] or tonumber(v.read[c] or 0)
end

-- The smallest waiting tag of a class in a level, among the heads of its lanes.
local function class_head(u, level, class)
  local base = (100 - level) * Q.LEVEL
  local top = call('ZRANGEBYSCORE', u.P .. 'h:' .. class, Q.int(base), Q.int(base + Q.LEVEL - 1), 'WITHSCORES',
    'LIMIT', '0', '1')
  return top[2] and top[2] % Q.LEVEL
end

-- Expected GPU time of a job of a class, in tag units.
function Q.cost(u, class)
  local c = Q.class(u, class)
  return math.max(1, math.floor((c.run or c.cold or Q.RUN_MS) / Q.UNIT_MS))
end

-- The names of a lane's finish tags. Many jobs of one call are of the same lane: the last ones are kept.
local last_tenant, last_class, last_t, last_c

local function tag_names(tenant, class)
  if last_tenant ~= tenant or last_class ~= class then
    last_tenant, last_class, last_t, last_c = tenant, class, 't:' .. tenant, 'c:' .. tenant .. ':' .. class
  end
  return last_t, last_c
end

-- What a job takes of its tenant's share of the time.
local function share(u, tenant, class)
  return math.max(1, math.floor(Q.cost(u, class) / Q.tenant(u, tenant).weight))
end

-- The score of a job that starts to wait now.
function Q.score(u, level, tenant, class)
  local t, c = tag_names(tenant, class)
  local v = Q.virtual(u, level, t, c)
  local ours, in_class = finish_tags(u, v, level, t, c)
  local start = math.max(v.V, ours)
  if v.waiting > 0 and in_class < start then
    local head = class_head(u, level, class)
    if head then start = math.min(start, math.max(head, in_class)) end
  end
  local finish = start + share(u, tenant, class)
  v.set[c] = finish
  v.set[t] = math.max(finish, ours)
  return Q.int((100 - level) * Q.LEVEL + start)
end

-- The place behind a job that this call has given a score, for the next ones of its lane. It holds as long as no other
-- lane of the class waits: then a lane's jobs follow each other by what each takes.
function Q.behind(u, r)
  local level, t, c = Q.level_of(tonumber(r.score)), tag_names(r.tenant, r.class)
  return {
    v = Q.virtual(u, level), t = t, c = c, from = (100 - level) * Q.LEVEL, share = share(u, r.tenant, r.class),
    lane = Q.lane_key(u, r.class, r.tenant), waiting = u.P .. 'w:' .. r.tenant,
  }
end

-- The score of the next job behind.
function Q.next_score(behind)
  local v, t, c = behind.v, behind.t, behind.c
  local set = v.set
  local start = set[c]
  local finish = start + behind.share
  set[c] = finish
  if finish > set[t] then set[t] = finish end
  v.waiting = v.waiting + 1
  return Q.int(behind.from + start)
end

-- Jobs that are submitted later stay behind one of their lane that is back at its old place: while nothing waited its
-- level has forgotten who had what.
function Q.stay_ahead(u, r)
  local score = tonumber(r.score)
  local level, tag, t, c = Q.level_of(score), score % Q.LEVEL, tag_names(r.tenant, r.class)
  local v = Q.virtual(u, level, t, c)
  local _, in_class = finish_tags(u, v, level, t, c)
  if in_class < tag then v.set[c] = tag end
end

-- A job that is back is before all later ones of its lane. One that came while this one was in no lane, and its level
-- had forgotten it, may have got a smaller tag: then this one gets that, too. What was moved to the front stays.
function Q.old_place(u, r)
  local lane, score, mine = Q.lane_key(u, Q.lane_class(r), r.tenant), tonumber(r.score), Q.member(r)
  local low = (100 - Q.level_of(score)) * Q.LEVEL + Q.FIRST_TAG
  Q.write_set(u, lane)
  local before = call('ZREVRANGEBYSCORE', lane, '(' .. r.score, Q.int(low), 'WITHSCORES', 'LIMIT', '0', '64')
  for i = 1, #before, 2 do
    if string.sub(before[i], 1, 12) < string.sub(mine, 1, 12) then break end
    Q.put(u, r, 'score', before[i + 1])
  end
end

-- The score of a job that is moved to the front of its level: before everything that waits there.
function Q.front_score(u, level)
  local v = Q.virtual(u, level)
  local front = v.set.front or call('HGET', u.P .. 'v:' .. level, 'front') or Q.FIRST_TAG
  v.set.front = front - 1
  return Q.int((100 - level) * Q.LEVEL + v.set.front)
end
