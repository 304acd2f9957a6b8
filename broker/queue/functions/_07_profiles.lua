-- What workers can do (profiles) against what jobs need (classes): worked out once, when either appears.

-- Comparisons that one call may make; what is left is done by `emq_sweep`.
local BUDGET = 200

local function fits(u, profile, atoms, vram_mb)
  if vram_mb > 0 and Q.vram_mb(u, profile) < vram_mb then return false end
  for from = 1, #atoms, 5000 do
    local part = call('SMISMEMBER', u.P .. 'p:' .. profile, unpack(atoms, from, math.min(#atoms, from + 4999)))
    for _, has in ipairs(part) do
      if has == 0 then return false end
    end
  end
  return true
end

local function enter_match(u, profile, class, atoms, vram_mb)
  local able = fits(u, profile, atoms, vram_mb)
  if able then call('SADD', u.P .. 'ok:' .. profile, class) end
  return able
end

-- Compares a class with every live profile; with many of them the sweep goes on where this stopped. Answers whether one
-- was found that can run it.
function Q.match_class(u, class, cursor)
  local c = call('HMGET', u.P .. 'c:' .. class, 'atoms', 'vram_mb', 'base')
  if not c[2] then
    call('HDEL', u.P .. 'match', 'c:' .. class)
    return false
  elseif u.matches >= BUDGET then
    call('HSET', u.P .. 'match', 'c:' .. class, cursor or '0')
    return false
  end
  local atoms, vram_mb, found = Q.lines(c[1]), tonumber(c[2]), false
  local part = call('ZSCAN', u.P .. 'profiles', cursor or '0', 'COUNT', BUDGET)
  for i = 1, #part[2], 2 do found = enter_match(u, part[2][i], class, atoms, vram_mb) or found end
  u.matches = u.matches + #part[2] / 2
  if part[1] ~= '0' then
    call('HSET', u.P .. 'match', 'c:' .. class, part[1])
  elseif cursor then
    call('HDEL', u.P .. 'match', 'c:' .. class)
  end
  return found
end

-- Compares a profile with every class, in steps like `Q.match_class`.
function Q.match_profile(u, profile, cursor)
  local part = call('ZSCAN', u.P .. 'classes', cursor or '0', 'COUNT', BUDGET)
  for i = 1, #part[2], 2 do
    local class = part[2][i]
    local c = call('HMGET', u.P .. 'c:' .. class, 'atoms', 'vram_mb')
    if c[2] then enter_match(u, profile, class, Q.lines(c[1]), tonumber(c[2])) end
  end
  u.matches = u.matches + #part[2] / 2
  if part[1] ~= '0' then
    call('HSET', u.P .. 'match', 'p:' .. profile, part[1])
  elseif cursor then
    call('HDEL', u.P .. 'match', 'p:' .. profile)
  end
end

-- The sweep's part of the comparisons.
function Q.match_more(u, limit)
  for _ = 1, limit do
    if u.matches >= BUDGET then return end
    local todo = call('HSCAN', u.P .. 'match', '0', 'COUNT', 1)[2]
    if not todo[1] then return end
    local what, name = string.sub(todo[1], 1, 1), string.sub(todo[1], 3)
    if what == 'c' then Q.match_class(u, name, todo[2]) else Q.match_profile(u, name, todo[2]) end
  end
end

-- Makes a class known; answers whether a live worker is known to be able to run it. `base` and `avoid` make it a
-- variant that some workers should leave alone.
function Q.new_class(u, class, atoms, vram_mb, kind, base, avoid)
  local flat = { 'vram_mb', vram_mb, 'atoms', atoms, 'used', u.ms }
  local more = { kind = kind ~= '' and kind or nil, base = base, avoid = avoid }
  for name, value in pairs(more) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  call('HSET', u.P .. 'c:' .. class, unpack(flat))
  call('ZADD', u.P .. 'classes', u.ms, class)
  u.classes[class] = nil
  return Q.match_class(u, class)
end

local function atoms_of(json)
  local p, atoms = cjson.decode(json), {}
  local function each(list, prefix)
    if type(list) == 'table' then
      for _, name in ipairs(list) do atoms[#atoms + 1] = prefix .. tostring(name) end
    end
  end
  each(p.job_types, 't:')
  each(p.node_classes, 'n:')
  each(p.tags, 'g:')
  for folder, files in pairs(type(p.models) == 'table' and p.models or {}) do
    each(files, 'm:')
    each(files, 'm:' .. folder .. '/')
  end
  local gpu = type(p.gpu) == 'string' and string.sub(string.gsub(p.gpu, '%c', ' '), 1, 64) or ''
  return atoms, tonumber(p.vram_mb) or 0, gpu
end

-- Stores a profile from its JSON, unless it is there; answers its name. `ranges` is kept as it is (its digest is in the
-- JSON, so equal profiles have equal ones).
function Q.new_profile(u, json, ranges)
  local P, profile = u.P, string.sub(redis.sha1hex(json), 1, 16)
  if call('EXISTS', P .. 'pv:' .. profile) == 0 then
    local atoms, vram_mb, gpu = atoms_of(json)
    for from = 1, #atoms, 5000 do
      call('SADD', P .. 'p:' .. profile, unpack(atoms, from, math.min(#atoms, from + 4999)))
    end
    call('SET', P .. 'pd:' .. profile, json)
    if ranges and ranges ~= '' then call('SET', P .. 'px:' .. profile, ranges) end
    if gpu ~= '' then call('SET', P .. 'pg:' .. profile, gpu) end
    call('SET', P .. 'pv:' .. profile, Q.int(vram_mb))
  end
  return profile
end
