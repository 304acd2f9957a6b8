-- Live profiles: how many workers have each, and which classes somebody can run.

local KINDS = { 'p:', 'pd:', 'pv:', 'pw:', 'pg:', 'px:' }
local DAY = 86400000

-- What is stored of a profile stays.
function Q.keep_profile(u, profile)
  for _, kind in ipairs(KINDS) do call('PERSIST', u.P .. kind .. profile) end
end

-- A worker takes up a profile.
function Q.join_profile(u, profile)
  if call('ZINCRBY', u.P .. 'profiles', 1, profile) == '1' then
    Q.keep_profile(u, profile)
    Q.match_profile(u, profile)
  end
end

-- A worker lays a profile down; one that nobody has is kept for a day, unmatched.
function Q.leave_profile(u, profile)
  if not profile then return end
  local P = u.P
  if tonumber(call('ZINCRBY', P .. 'profiles', -1, profile)) > 0 then return end
  call('ZREM', P .. 'profiles', profile)
  call('DEL', P .. 'ok:' .. profile)
  call('HDEL', P .. 'match', 'p:' .. profile)
  for _, kind in ipairs(KINDS) do call('PEXPIRE', P .. kind .. profile, DAY) end
end

-- The profile that is `profile` without some atoms: what a worker turned out not to have.
function Q.lesser_profile(u, profile, atoms)
  local P = u.P
  local lesser = string.sub(redis.sha1hex(profile .. '\n' .. table.concat(atoms, '\n')), 1, 16)
  if call('EXISTS', P .. 'pv:' .. lesser) == 0 then
    call('SUNIONSTORE', P .. 'p:' .. lesser, P .. 'p:' .. profile)
    call('SREM', P .. 'p:' .. lesser, unpack(atoms))
    call('SET', P .. 'pd:' .. lesser, call('GET', P .. 'pd:' .. profile) or '{}')
    call('SET', P .. 'pv:' .. lesser, call('GET', P .. 'pv:' .. profile) or '0')
    call('COPY', P .. 'pg:' .. profile, P .. 'pg:' .. lesser)
    call('COPY', P .. 'px:' .. profile, P .. 'px:' .. lesser)
    local without = call('GET', P .. 'pw:' .. profile)
    call('SET', P .. 'pw:' .. lesser, (without and without .. '\n' or '') .. table.concat(atoms, '\n'))
  end
  return lesser
end

function Q.vram_mb(u, profile)
  return tonumber(call('GET', u.P .. 'pv:' .. profile) or 0)
end

-- Whether a live worker can run a class; one of `but_profile` is left out, and those with at most `over_mb` of VRAM.
function Q.served(u, class, but_profile, over_mb)
  local live = call('ZRANGE', u.P .. 'profiles', 0, 99, 'WITHSCORES')
  for i = 1, #live, 2 do
    local workers = tonumber(live[i + 1]) - (live[i] == but_profile and 1 or 0)
    local fits = workers > 0 and call('SISMEMBER', u.P .. 'ok:' .. live[i], class) == 1
    if fits and not (over_mb and Q.vram_mb(u, live[i]) <= over_mb) then return true end
  end
  return false
end

-- How many live workers can run each of some classes.
function Q.workers_of(u, names)
  local live, out = call('ZREVRANGE', u.P .. 'profiles', 0, 99, 'WITHSCORES'), {}
  for _, name in ipairs(names) do out[name] = 0 end
  for i = 1, #names > 0 and #live or 0, 2 do
    for at, fits in ipairs(call('SMISMEMBER', u.P .. 'ok:' .. live[i], unpack(names))) do
      if fits == 1 then out[names[at]] = out[names[at]] + tonumber(live[i + 1]) end
    end
  end
  return out
end

-- The class of a job that worker W should not get while another can run it: `<class>!<W>`; of one that those with
-- more VRAM than so many MB should get: `<class>!><MB>`.
function Q.variant(u, class, avoid)
  local name = class .. '!' .. avoid
  if not Q.class(u, name).exists then
    local c = call('HMGET', u.P .. 'c:' .. class, 'atoms', 'vram_mb', 'kind')
    Q.new_class(u, name, c[1] or '', c[2] or '0', c[3] or '', class, avoid)
  end
  call('HSET', u.P .. 'c:' .. name, 'since', u.ms)
  u.classes[name] = nil
  return name
end
