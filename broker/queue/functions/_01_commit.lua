-- Writes what a unit of work gathered.

-- Counts the workers of each state in `states`.
local function write_state(u, w)
  local state = Q.state(w)
  if state == w._state then return end
  if w._state then redis.call('HINCRBY', u.P .. 'states', w._state, '-1') end
  if state then redis.call('HINCRBY', u.P .. 'states', state, '1') end
  w._state = state
end

-- A record that did not exist before is written whole.
local function write_new(record)
  local flat, n = {}, 0
  for name, value in pairs(record) do
    if string.byte(name) ~= 95 then -- not _id, _key, _new
      flat[n + 1] = name
      flat[n + 2] = value
      n = n + 2
    end
  end
  redis.call('HSET', record._key, unpack(flat))
  record._new = nil
end

local function write_record(u, record)
  if record._new then return write_new(record) end
  if u.workers[record._id] == record then write_state(u, record) end
  local flat, gone = {}, {}
  for name, value in pairs(record._set) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  for name in pairs(record._del) do gone[#gone + 1] = name end
  if #flat > 0 then redis.call('HSET', record._key, unpack(flat)) end
  if #gone > 0 then redis.call('HDEL', record._key, unpack(gone)) end
  record._set = nil
end

local function write_counts(u)
  local key = u.P .. 'count'
  for field, delta in pairs(u.counts) do
    if delta ~= 0 then redis.call('HINCRBY', key, field, Q.int(delta)) end
  end
  u.counts = nil
end

-- Virtual time: a level without waiting jobs forgets who had what; V itself never falls.
local function write_levels(u)
  for level, v in pairs(u.levels) do
    local key = u.P .. 'v:' .. level
    if v.waiting <= 0 then
      if v.stored then redis.call('DEL', key) end
      redis.call('HSET', u.P .. 'vt', level, Q.int(v.V))
      redis.call('SREM', u.P .. 'levels', level)
    else
      local flat = { 'V', Q.int(v.V), 'waiting', Q.int(v.waiting) }
      for name, value in pairs(v.set) do
        flat[#flat + 1] = name
        flat[#flat + 1] = value
      end
      redis.call('HSET', key, unpack(flat))
      if not v.stored then redis.call('SADD', u.P .. 'levels', level) end
    end
  end
  u.levels = nil
end

-- Logs and publishes, in order.
local function write_events(u)
  local logs, order = {}, {}
  for _, event in ipairs(u.out) do
    if event[3] then
      local log = logs[event[1]]
      if not log then
        log = {}
        logs[event[1]] = log
        order[#order + 1] = event[1]
      end
      log[#log + 1] = event[2]
    end
  end
  for _, job in ipairs(order) do
    local key = u.P .. 'e:' .. job
    if redis.call('RPUSH', key, unpack(logs[job])) > Q.LOG_MAX then redis.call('LTRIM', key, -Q.LOG_MAX, -1) end
  end
  local channel = u.P .. 'ev:' .. u.deployment .. ':'
  for _, event in ipairs(u.out) do redis.call('SPUBLISH', channel .. event[1], event[2]) end
  u.out = nil
end

function Q.commit(u)
  Q.cascade_now(u)
  Q.settle(u)
  Q.wake_all(u)
  for i, record in ipairs(u.touched) do
    write_record(u, record)
    u.touched[i] = nil
  end
  write_counts(u)
  write_levels(u)
  write_events(u)
  for job, ms in pairs(u.ttl) do
    for _, kind in ipairs({ 'j:', 'b:', 'e:' }) do redis.call('PEXPIRE', u.P .. kind .. job, ms) end
  end
  u.ttl = nil
  if u.group_ends then Q.tell_groups(u) end
end
