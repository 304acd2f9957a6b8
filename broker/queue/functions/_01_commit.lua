-- Writes what a unit of work gathered.

-- The fields of one write, name and value in turn, and those to remove: lists for all, since a new one grows in steps,
-- at a cost each.
local flat, gone = {}, {}

-- Counts the workers of each state in `states`.
local function write_state(u, w)
  local state = Q.state(w)
  if state == w._state then return end
  if w._state then call('HINCRBY', u.P .. 'states', w._state, '-1') end
  if state then call('HINCRBY', u.P .. 'states', state, '1') end
  w._state = state
end

local function write_record(u, record)
  if record._is_worker then write_state(u, record) end
  local n, m = 1, 0
  for name, old in pairs(record._was) do
    local value = record[name]
    if value == nil then
      if old then
        m = m + 1
        gone[m] = name
      end
    elseif value ~= old then
      flat[n] = name
      flat[n + 1] = value
      n = n + 2
    end
  end
  if n > 1 then call('HSET', record._key, unpack(flat, 1, n - 1)) end
  if m > 0 then call('HDEL', record._key, unpack(gone, 1, m)) end
  record._was = nil
end

-- Publishes messages. No reader comes in the middle of a call: where the first has none, the rest has none.
local function publish_all(channel, messages)
  for i = 1, #messages do
    if call('SPUBLISH', channel, messages[i]) == 0 then return end
  end
end

-- Logs and publishes what a job has to tell, in order: what is logged before what is on the wire only.
local function write_events(u, r, channel)
  local log, wire = r._log, r._wire
  if log then
    local key = u.P .. 'e:' .. r._id
    local length = r._first and call('RPUSH', key, r._first, unpack(log)) or call('RPUSH', key, unpack(log))
    if length > Q.LOG_MAX then call('LTRIM', key, -Q.LOG_MAX, '-1') end
    publish_all(channel, log)
  end
  if wire then publish_all(channel, wire) end
  r._log, r._wire, r._first = nil, nil, nil
end

-- Ended jobs get their life times.
local function write_lives(u)
  for _, r in ipairs(u.lives) do
    local life, id = r._life, r._id
    call('PEXPIRE', r._key, life)
    call('PEXPIRE', u.P .. 'b:' .. id, life)
    call('PEXPIRE', u.P .. 'e:' .. id, life)
  end
  u.lives = false
end

function Q.commit(u)
  if u.cascade then Q.cascade_now(u) end
  if u.lane_order then Q.settle(u) end
  if u.wakes then Q.wake_all(u) end
  Q.write_sets(u)
  local touched, told = u.touched, u.told
  for i = 1, #touched do
    write_record(u, touched[i])
    touched[i] = nil
  end
  Q.write_counts(u)
  Q.write_levels(u)
  local channel = u.P .. 'ev:' .. u.deployment .. ':'
  for i = 1, #told do
    write_events(u, told[i], channel .. told[i]._id)
    told[i] = nil
  end
  if u.lives then write_lives(u) end
  if u.group_ends then Q.tell_groups(u) end
end
