-- What a call changes: fields of records and counters. `Q.commit` writes it.

local function touch(u, record)
  local was = {
    status = nil, events = nil, phase = nil, token = nil, instance = nil, worker_id = nil, claimed_at = nil, done = nil,
    attempt = nil,
  }
  record._was = was
  u.touched[#u.touched + 1] = record
  return was
end

-- Changes a field of a record that was written, or read with `Q.job` or `Q.worker`; nil removes the field.
-- What it is changed back to is not written.
function Q.put(u, record, name, value)
  local was = record._was or touch(u, record)
  if was[name] == nil then was[name] = record[name] or false end
  record[name] = value
end

function Q.add(u, record, name, delta)
  local was, old = record._was or touch(u, record), record[name]
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
