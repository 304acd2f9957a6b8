-- Which class a worker serves next: the best head it can run, or a worse one whose models it has loaded.

-- Whether a class is a variant that this worker leaves to others: it failed the job, or has no more VRAM than one that
-- had too little. It does so as long as another live worker can run it, but not for ever: that one may be paused.
function Q.shunned(u, w, class)
  if not string.find(class, '!', 1, true) then return false end
  local c = call('HMGET', u.P .. 'c:' .. class, 'base', 'avoid', 'since')
  if u.now - (c[3] or 0) > Q.setting(u, 'avoid_ms') then return false end
  local vram_mb = tonumber(string.match(c[2] or '', '^>(%d+)$'))
  if vram_mb then return Q.vram_mb(u, w.profile) <= vram_mb and Q.served(u, c[1], nil, vram_mb) end
  return c[2] == w._id and Q.served(u, c[1], w.profile)
end

-- The first of `classes` (best first; name, score, …) that the worker may serve.
local function first_fit(u, w, top)
  if #top == 0 then return nil end
  if #top == 2 then
    local fits = call('SISMEMBER', u.P .. 'ok:' .. w.profile, top[1]) == 1 and not Q.shunned(u, w, top[1])
    return fits and top[1] or nil, tonumber(top[2])
  end
  local names = {}
  for i = 1, #top, 2 do names[#names + 1] = top[i] end
  local fits = call('SMISMEMBER', u.P .. 'ok:' .. w.profile, unpack(names))
  for i, name in ipairs(names) do
    if fits[i] == 1 and not Q.shunned(u, w, name) then return name, tonumber(top[2 * i]) end
  end
  return nil
end

-- The best head often fits, and a worker with few classes is asked for those: only else several heads are looked at.
local function best_fit(u, w)
  if w.idle and call('SCARD', u.P .. 'ok:' .. w.profile) == 0 then return nil end
  local first = call('ZRANGE', u.P .. 'i', '0', '0', 'WITHSCORES')
  if not first[1] then return nil end
  local class, score = first_fit(u, w, first)
  if class then return class, score end
  local able = call('SCARD', u.P .. 'ok:' .. w.profile)
  if able == 0 then return nil end
  if able > 16 then
    local heads = call('ZRANGE', u.P .. 'i', '1', '15', 'WITHSCORES')
    class, score = first_fit(u, w, heads)
    if class or #heads < 30 then return class, score end
  end
  local top = call('ZINTER', '2', u.P .. 'i', u.P .. 'ok:' .. w.profile, 'WEIGHTS', '1', '0', 'WITHSCORES')
  for i = 1, #top, 2 do
    if not Q.shunned(u, w, top[i]) then return top[i], tonumber(top[i + 1]) end
  end
  return nil
end

-- The kinds of heavy models that may be loaded: each file, the kind that ran last, all files together.
local function loaded_kinds(w)
  local files = Q.lines(w.loaded)
  local kinds, seen = {}, {}
  local function add(kind)
    if kind and kind ~= '' and not seen[kind] and #kinds < 10 then
      seen[kind] = true
      kinds[#kinds + 1] = kind
    end
  end
  if w.kind and Q.is_warm(w.kind, w.loaded) then add(w.kind) end
  for _, file in ipairs(files) do add(file) end
  table.sort(files)
  add(table.concat(files, '\n'))
  return kinds
end

local function best_warm(u, w)
  local class, score
  for _, kind in ipairs(loaded_kinds(w)) do
    local top = call('ZRANGE', u.P .. 'k:' .. kind, '0', '3', 'WITHSCORES')
    local found, at = first_fit(u, w, top)
    if found and (not score or at < score) then class, score = found, at end
  end
  return class, score
end

-- What a model load for a class would take, in ms.
local function load_ms(c)
  if c.cold and c.run then return math.max(0, c.cold - c.run) end
  return Q.LOAD_MS
end

-- The class to serve, and its best score. A warm class goes before the best (cold) one of the same priority as long as
-- that costs the cold one less than its load: in tags, and in time since it was passed over first.
function Q.pick(u, w)
  local cold, score = best_fit(u, w)
  if not cold then return nil end
  local c = Q.class(u, cold)
  if c.kind == '' or not w.loaded or w.loaded == '' or Q.is_warm(c.kind, w.loaded) then return cold, score end
  local warm, at = best_warm(u, w)
  if not warm or Q.level_of(at) ~= Q.level_of(score) then return cold, score end
  local bound = math.min(load_ms(c), Q.setting(u, 'affinity_max_wait_ms'))
  if (at - score) * Q.UNIT_MS > bound or (c.passed and u.now - c.passed > bound) then return cold, score end
  if not c.passed then
    c.passed = u.now
    call('HSET', u.P .. 'c:' .. cold, 'passed', u.ms)
  end
  return warm, at
end

-- The next job for a worker: its record; or nil and `none` or `again`. The job has left its lane. `more`: the worker
-- gets so many besides in this call.
function Q.next_job(u, w, more)
  local r = Q.run_on(u, w)
  if r then return r end
  Q.settle(u)
  for _ = 1, 16 do
    local class = Q.pick(u, w)
    if not class then
      if not Q.unpark_more(u) then return nil, 'none' end
      Q.settle(u)
    else
      local heads = call('ZRANGE', u.P .. 'h:' .. class, '0', '1', 'WITHSCORES')
      local tenant = heads[1]
      if Q.held_back(u, tenant) then
        Q.park(u, class, tenant)
      else
        r = more and Q.run(u, w, class, tenant, heads[4], more) or Q.pop(u, class, tenant, heads[4])
        if r then return r end
      end
    end
  end
  return nil, 'again'
end

-- Takes the head of a lane, its class's best one; nil when it expired (it is failed then). `second` is the score of the
-- class's next best lane.
function Q.pop(u, class, tenant, second)
  local head = call('ZPOPMIN', Q.lane_key(u, class, tenant))
  Q.follow(u, class, tenant, second)
  return head[1] and Q.popped(u, class, head[1], head[2]) or nil
end
