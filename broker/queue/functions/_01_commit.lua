-- Writes what a unit of work gathered.

-- The fields of one write, name and value in turn: one list for all, since a new one grows in steps, at a cost each.
local flat = {}

local NONE, KINDS = {}, { 'j:', 'b:', 'e:' }

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
  local n = 0
  for name, value in pairs(record) do
    if string.byte(name) ~= 95 then -- not _id, _key, _new
      flat[n + 1] = name
      flat[n + 2] = value
      n = n + 2
    end
  end
  redis.call('HSET', record._key, unpack(flat, 1, n))
  record._new = nil
end

local function write_record(u, record)
  if record._new then return write_new(record) end
  if u.workers[record._id] == record then write_state(u, record) end
  local gone, n = {}, 0
  for name, old in pairs(record._was) do
    local value = record[name]
    if value == nil then
      if old then gone[#gone + 1] = name end
    elseif value ~= old then
      flat[n + 1], flat[n + 2] = name, value
      n = n + 2
    end
  end
  if n > 0 then redis.call('HSET', record._key, unpack(flat, 1, n)) end
  if gone[1] then redis.call('HDEL', record._key, unpack(gone)) end
  record._was = nil
end

-- Counters: read and written in one go each, which is cheaper than adding to one after another.
local function write_counts(u)
  local counts = rawget(u, 'counts')
  if not counts then return end
  local fields, n = {}, 0
  for field, delta in pairs(counts) do
    if delta ~= 0 then
      n = n + 1
      fields[n] = field
    end
  end
  u.counts = nil
  if n == 0 then return end
  local key = u.P .. 'count'
  local had = redis.call('HMGET', key, unpack(fields))
  for i = 1, n do
    flat[2 * i - 1], flat[2 * i] = fields[i], Q.int((had[i] or 0) + counts[fields[i]])
  end
  redis.call('HSET', key, unpack(flat, 1, 2 * n))
end

-- Virtual time: a level without waiting jobs forgets who had what; V itself never falls.
local function write_levels(u)
  if not next(u.levels) then return end
  for level, v in pairs(u.levels) do
    local key = u.P .. 'v:' .. level
    if v.waiting <= 0 then
      if v.stored then redis.call('DEL', key) end
      redis.call('HSET', u.P .. 'vt', level, Q.int(v.V))
      redis.call('SREM', u.P .. 'levels', level)
    else
      local n = 4
      flat[1], flat[2], flat[3], flat[4] = 'V', Q.int(v.V), 'waiting', Q.int(v.waiting)
      for name, value in pairs(v.set) do
        flat[n + 1], flat[n + 2] = name, value
        n = n + 2
      end
      redis.call('HSET', key, unpack(flat, 1, n))
      if not v.stored then redis.call('SADD', u.P .. 'levels', level) end
    end
  end
  u.levels = {}
end

-- Logs and publishes, in order: `{ job, message, logged, published before }`.
local function write_events(u)
  local out = rawget(u, 'out')
  if not out then return end
  u.out = nil
  local logs, order = {}, {}
  for i = 1, #out do
    local job, message, logged = out[i][1], out[i][2], out[i][3]
    if logged then
      local log = logs[job]
      if log then
        log[#log + 1] = message
      else
        logs[job] = { message }
        order[#order + 1] = job
      end
    end
  end
  for i = 1, #order do
    local key, log = u.P .. 'e:' .. order[i], logs[order[i]]
    if redis.call('RPUSH', key, unpack(log)) > Q.LOG_MAX then redis.call('LTRIM', key, -Q.LOG_MAX, '-1') end
  end
  local channel = u.P .. 'ev:' .. u.deployment .. ':'
  for i = 1, #out do
    local event = out[i]
    if not event[4] then redis.call('SPUBLISH', channel .. event[1], event[2]) end
  end
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
  for job, ms in pairs(rawget(u, 'ttl') or NONE) do
    for _, kind in ipairs(KINDS) do redis.call('PEXPIRE', u.P .. kind .. job, ms) end
  end
  u.ttl = nil
  if u.group_ends then Q.tell_groups(u) end
end
