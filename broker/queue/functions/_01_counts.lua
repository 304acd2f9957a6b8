-- Writes counters and virtual time.

-- The fields of one write, and name and value in turn: lists for all, since a new one grows in steps, at a cost each.
local fields, flat = {}, {}

-- What counters were; `u.had` has those that the call has read before.
local function counters(u, key, n)
  local known, had = u.had, {}
  if not known then return call('HMGET', key, unpack(fields, 1, n)) end
  u.had = false
  for i = 1, n do
    local value = known[fields[i]]
    if not value then return call('HMGET', key, unpack(fields, 1, n)) end
    had[i] = value
  end
  return had
end

-- Counters: read and written in one go each, which is cheaper than adding to one after another.
function Q.write_counts(u)
  local counts, n = u.counts, 0
  for field, delta in pairs(counts) do
    if delta ~= 0 then
      n = n + 1
      fields[n] = field
    end
  end
  if n == 0 then return end
  u.counts = {}
  local key, int, at = u.P .. 'count', Q.int, 0
  local had = counters(u, key, n)
  for i = 1, n do
    local field = fields[i]
    flat[at + 1], flat[at + 2] = field, int((had[i] or 0) + counts[field])
    at = at + 2
  end
  call('HSET', key, unpack(flat, 1, at))
end

-- Virtual time: a level without waiting jobs forgets who had what; V itself never falls.
function Q.write_levels(u)
  if not next(u.levels) then return end
  for level, v in pairs(u.levels) do
    local key = u.P .. 'v:' .. level
    if v.waiting <= 0 then
      if v.stored then call('DEL', key) end
      call('HSET', u.P .. 'vt', level, Q.int(v.V))
      call('SREM', u.P .. 'levels', level)
    else
      local n = 2
      flat[1], flat[2] = 'waiting', Q.int(v.waiting)
      if v.V ~= v.stored then
        n = 4
        flat[3], flat[4] = 'V', Q.int(v.V)
      end
      for name, value in pairs(v.set) do
        flat[n + 1], flat[n + 2] = name, Q.int(value)
        n = n + 2
      end
      call('HSET', key, unpack(flat, 1, n))
      if not v.stored then call('SADD', u.P .. 'levels', level) end
    end
  end
  u.levels = {}
end
