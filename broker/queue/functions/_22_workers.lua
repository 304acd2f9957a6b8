-- What registration, heartbeats and goodbyes share.

-- The URLs of the brokers that workers may use, as lines.
function Q.brokers(u)
  return table.concat(call('ZRANGEBYSCORE', u.P .. 'brokers', u.ms, '+inf'), '\n')
end

-- The jobs of an instance move to the instance that took over its connection.
function Q.hand_over(u, from, to)
  local P = u.P
  local held = call('ZRANGE', P .. 'held:' .. from, 0, -1, 'WITHSCORES')
  for i = 1, #held, 2 do
    local r = Q.job(u, held[i])
    if r and r.instance == from then
      Q.put(u, r, 'instance', to)
      call('ZADD', P .. 'held:' .. to, held[i + 1], held[i])
    end
  end
  call('DEL', P .. 'held:' .. from)
  call('ZREM', P .. 'leases', from)
  call('HDEL', P .. 'instances', from)
end

-- Takes back the held jobs that are not among those that their worker says it has (lines `<job> <token>`).
function Q.lose_unnamed(u, instance, jobs)
  local named = {}
  for _, line in ipairs(Q.lines(jobs)) do named[string.match(line, '^(%S+)') or ''] = true end
  for _, job in ipairs(call('ZRANGE', u.P .. 'held:' .. instance, 0, -1)) do
    local r = not named[job] and Q.job(u, job)
    if r and r.instance == instance then Q.lost(u, r) end
  end
end

-- Releases held jobs that their worker did not name for one lease: claims whose answer was lost.
function Q.release_unnamed(u, instance, only_unstarted)
  local before = '(' .. Q.int(u.now - u.lease)
  for _, job in ipairs(call('ZRANGEBYSCORE', u.P .. 'held:' .. instance, '-inf', before, 'LIMIT', 0, 10)) do
    local r = Q.job(u, job)
    if not r or r.instance ~= instance then
      call('ZREM', u.P .. 'held:' .. instance, job)
    elseif r.phase == 'ahead' or not only_unstarted then
      Q.released(u, r, 'released')
    end
  end
end

-- Whether something waits that an idle worker could claim now. It then counts as woken, else as idle.
function Q.has_work(u, w)
  if w.status ~= 'idle' or u.paused or w.paused or w.drain then
    Q.unset_idle(u, w)
    return false
  end
  if tonumber(w.running or 0) + tonumber(w.ahead or 0) >= tonumber(w.slots or 1) then return false end
  Q.settle(u)
  if Q.pick(u, w) or call('EXISTS', u.P .. 'unpark') == 1 then
    Q.unset_idle(u, w)
    return true
  end
  Q.set_idle(u, w)
  return false
end
