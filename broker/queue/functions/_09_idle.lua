-- Idle workers and their inboxes. An inbox only hints: heartbeats repeat what must not be missed.

local WAKES = 64 -- workers that one call wakes; heartbeats tell the others

-- Leaves a hint in a worker's inbox.
function Q.hint(u, instance, text)
  if not instance or instance == '' then return end
  local key = u.P .. 'in:' .. instance
  if call('LPUSH', key, text) > 64 then call('LTRIM', key, '0', '63') end
  call('EXPIRE', key, '60')
end

-- `token`: of the claim that it leaves (see `Q.taker`).
function Q.set_idle(u, w, token)
  if not w.idle then
    local P, key = u.P, u.P .. 'idle:' .. w.profile
    call('ZADD', key, u.ms, w._id)
    call('ZADD', P .. 'idle', call('ZCARD', key), w.profile)
    Q.put(u, w, 'idle', token or '1')
  elseif token then
    Q.put(u, w, 'idle', token)
  end
end

function Q.unset_idle(u, w)
  if not w.idle then return end
  local P, key = u.P, u.P .. 'idle:' .. w.profile
  call('ZREM', key, w._id)
  local left = call('ZCARD', key)
  if left > 0 then call('ZADD', P .. 'idle', left, w.profile) else call('ZREM', P .. 'idle', w.profile) end
  Q.put(u, w, 'idle', nil)
end

-- Whether every heavy model of a kind is among the loaded files.
function Q.is_warm(kind, loaded)
  if not loaded or loaded == '' then return false end
  local have = '\n' .. loaded .. '\n'
  for _, name in ipairs(Q.lines(kind)) do
    if not string.find(have, '\n' .. name .. '\n', 1, true) then return false end
  end
  return true
end

-- Chooses among a profile's idle workers: one with the kind's models loaded, else the one that waits longest.
local function choose(u, profile, class, kind)
  local names = call('ZRANGE', u.P .. 'idle:' .. profile, '0', kind ~= '' and '7' or '3')
  local best
  for _, name in ipairs(names) do
    local w = Q.worker(u, name)
    if w and w.idle and not w.paused and not w.drain and not Q.shunned(u, w, class) then
      if kind ~= '' and Q.is_warm(kind, w.loaded) then return w end
      best = best or w
    end
  end
  return best
end

-- The idle worker that a job of a class is for; nil when there is none.
function Q.idle_for(u, class)
  if u.paused or u.nobody_idle or (u.woken or 0) >= WAKES then return nil end
  local profiles = call('ZRANGE', u.P .. 'idle', '0', '31')
  if #profiles == 0 then
    u.nobody_idle = true
    return nil
  end
  for _, profile in ipairs(profiles) do
    if call('SISMEMBER', u.P .. 'ok:' .. profile, class) == 1 then
      local w = choose(u, profile, class, Q.class(u, class).kind)
      if w then return w end
    end
  end
  return nil
end

-- Wakes one idle worker that can run a class; it counts as idle again once it claimed and got nothing.
function Q.wake(u, class)
  local w = Q.idle_for(u, class)
  if not w then return false end
  Q.unset_idle(u, w)
  Q.hint(u, w.instance, 'work')
  u.woken = (u.woken or 0) + 1
  return true
end

-- Remembers that a job of a class became claimable; the wake-up follows at the end of the call.
function Q.claimable(u, class)
  u.wakes = u.wakes or {}
  u.wakes[#u.wakes + 1] = class
end

function Q.wake_all(u)
  if not u.wakes then return end
  for i, class in ipairs(u.wakes) do
    if i > WAKES then break end
    Q.wake(u, class)
  end
  u.wakes = false
end
