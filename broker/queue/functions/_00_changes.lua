-- What a call changes: fields of records and counters. `Q.commit` writes it.

-- What nearly every change of a record changes.
local function usual_fields(record)
  if record._is_worker then
    return {
      running = record.running or false, ahead = record.ahead or false, finishing = record.finishing or false,
      tokens = record.tokens or false, idle = record.idle or false, a = nil, b = nil, c = nil,
    }
  end
  return {
    status = record.status, events = record.events or false, phase = record.phase or false,
    token = record.token or false, instance = record.instance or false, worker_id = record.worker_id or false,
    claimed_at = record.claimed_at or false, started_at = record.started_at or false,
    finished_at = record.finished_at or false, done = record.done or false, attempt = record.attempt or false,
  }
end

-- Notes what a record that was written, or read with `Q.job` or `Q.worker`, was: its usual fields may be set from now
-- on, which is much cheaper than `Q.put`. Answers the notes.
function Q.touch(u, record)
  local was = record._was
  if not was then
    was = usual_fields(record)
    record._was = was
    u.touched[#u.touched + 1] = record
  end
  return was
end

-- Changes any field of such a record; nil removes it. What it is changed back to is not written.
function Q.put(u, record, name, value)
  local was = record._was or Q.touch(u, record)
  if was[name] == nil then was[name] = record[name] or false end
  record[name] = value
end

function Q.add(u, record, name, delta)
  local was, old = record._was or Q.touch(u, record), record[name]
  if was[name] == nil then was[name] = old or false end
  local value = (old or 0) + delta
  record[name] = value ~= 0 and Q.int(value) or nil
  return value
end

function Q.count(u, field, delta)
  local counts = u.counts
  counts[field] = (counts[field] or 0) + delta
end

-- The names of each tenant's counters, `<tenant>:<what>`.
local NAMES, tenants = {}, 0
local MADE = {
  __index = function(names, what)
    local name = names[1] .. ':' .. what
    names[what] = name
    return name
  end,
}

local function new_names(tenant)
  if tenants == 512 then NAMES, tenants = {}, 0 end
  local names = setmetatable({ tenant }, MADE)
  NAMES[tenant], tenants = names, tenants + 1
  return names
end

-- The names of a tenant's counters, by what they count.
function Q.counters_of(tenant)
  return NAMES[tenant] or new_names(tenant)
end

-- A counter of a tenant.
function Q.count_of(u, tenant, what, delta)
  local counts, name = u.counts, (NAMES[tenant] or new_names(tenant))[what]
  counts[name] = (counts[name] or 0) + delta
end
