-- Putting right what a consistency check found of workers, their profiles and what those can run.

-- Counts what a worker's instance holds, and lists it among the idle or not, as its record says. One without a lease is
-- gone, which no sweep would see.
function Q.recount_worker(u, w)
  local P, real = u.P, {}
  if not w.gone and not call('ZSCORE', P .. 'leases', w.instance) then
    call('HSET', P .. 'instances', w.instance, w._id) -- which a goodbye that was written by half has forgotten
    return Q.reap(u, w.instance)
  end
  for _, id in ipairs(call('ZRANGE', P .. 'held:' .. w.instance, 0, -1)) do
    local phase = call('HGET', P .. 'j:' .. id, 'phase')
    if phase then real[phase] = (real[phase] or 0) + 1 end
  end
  for _, phase in ipairs({ 'ahead', 'running', 'finishing' }) do
    Q.put(u, w, phase, real[phase] and Q.int(real[phase]) or nil)
  end
  local key = 'idle:' .. (w.profile or '')
  Q.put_in_place(u, w.idle, key, call('ZSCORE', P .. key, w._id) or u.ms, w._id)
  local n = call('ZCARD', P .. key)
  Q.put_in_place(u, n > 0, 'idle', n, w.profile or '')
end

-- Counts the live workers of each profile and in each state. `more` are workers beside those that are listed as alive.
function Q.recount_fleet(u, more)
  local P, seen, profiles, states = u.P, {}, {}, {}
  for _, names in ipairs({ call('ZRANGE', P .. 'workers', 0, -1), more }) do
    for _, name in ipairs(names) do
      local w = not seen[name] and Q.worker(u, name)
      seen[name] = true
      if w and not w.gone then
        if w.profile then profiles[w.profile] = (profiles[w.profile] or 0) + 1 end
        states[Q.state(w)] = (states[Q.state(w)] or 0) + 1
      end
    end
  end
  for _, state in ipairs(call('HKEYS', P .. 'states')) do states[state] = states[state] or 0 end
  for state, n in pairs(states) do call('HSET', P .. 'states', state, Q.int(n)) end
  for _, profile in ipairs(call('ZRANGE', P .. 'profiles', 0, -1)) do
    if not profiles[profile] then
      call('ZADD', P .. 'profiles', 1, profile)
      Q.leave_profile(u, profile)
    end
  end
  for profile, n in pairs(profiles) do
    if call('ZADD', P .. 'profiles', n, profile) == 1 then Q.compare_again(u, profile) end
  end
end

-- Compares a live profile with every class anew.
function Q.compare_again(u, profile)
  call('DEL', u.P .. 'ok:' .. profile)
  Q.keep_profile(u, profile)
  Q.match_profile(u, profile, '0')
end

-- Lists a class again, and compares it with every profile.
function Q.know_again(u, class)
  if call('EXISTS', u.P .. 'c:' .. class) == 0 then return end
  call('ZADD', u.P .. 'classes', 'NX', u.ms, class)
  Q.match_class(u, class, '0')
end
