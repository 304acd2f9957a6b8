-- What a submit writes of a new job, and how it numbers many of them.

-- Copied to the record unless they have the value that follows.
local COPIED = {
  'job_type', 'comfyui', 'max_attempts', '3', 'on_parent_failure', 'fail', 'timeout_s', '', 'group', '', 'est', '',
  'labels', '', 'hook', '', 'trace', '',
}

-- The fields of the record that is being made, name and value in turn: these, of which the first four are the same for
-- many jobs, and those that only some have. One list for all jobs, since a new one grows in steps, at a cost each.
local flat = {
  'tenant', '', 'class', '', 'created_at', '', 'priority', '', 'arrival', '', 'spec_len', '', 'status', '',
}
local n = 0

local function append(name, value)
  flat[n + 1], flat[n + 2] = name, value
  n = n + 2
end

-- Gives the record that is being made a field.
function Q.field(r, name, value)
  r[name] = value
  append(name, value)
end

local function copy(j, r)
  for i = 1, #COPIED, 2 do
    local name = COPIED[i]
    local value = j[name]
    if value and value ~= COPIED[i + 1] and value ~= '' then
      append(name, value)
      if r then r[name] = value end
    end
  end
end

-- A new job's record, to be completed with `Q.field` and written with `Q.write_new`.
function Q.new_record(u, tenant, j, arrival)
  local class, at, ms = j.class, Q.int(arrival), u.ms
  local priority = j.priority and Q.int(tonumber(j.priority)) or '0'
  local spec_len = j.spec_len or Q.int(#(j.spec or ''))
  local r = {
    _id = j.id, _key = j.key, tenant = tenant, class = class, arrival = at, created_at = ms, priority = priority,
    spec_len = spec_len, _bytes = j.size, events = nil, first = nil, status = nil, score = nil, _member = nil,
    _was = nil, est = nil,
  }
  u.jobs[j.id] = r
  flat[2], flat[4], flat[6], flat[8], flat[10], flat[12], n = tenant, class, ms, priority, at, spec_len, 14
  if j.more then copy(j, r) end
  if j.expires_ms then Q.field(r, 'expires_at', Q.int(u.now + j.expires_ms)) end
  return r
end

-- Writes the record; what is changed of it from now on is written as of others.
function Q.write_new(r)
  flat[14] = r.status
  call('HSET', r._key, unpack(flat, 1, n))
end

-- Adds a job that follows the last one in its lane: only what is its own is worked out. Answers its position and the
-- size of its body.
function Q.add_behind(u, j, arrival, last)
  local behind = last.behind
  local at, score = Q.int(arrival), Q.next_score(behind)
  last.position, last.score = last.position + 1, tonumber(score)
  local position, size = Q.int(last.position), j.size
  Q.zadd(u, behind.lane, score, string.format('%012x:%s', arrival, j.id))
  Q.zadd(u, behind.waiting, at, j.id)
  flat[4], flat[8], flat[10], flat[12] = last.class, last.priority, at, j.spec_len or Q.int(#(j.spec or ''))
  flat[14], n = 'pending', 14
  if j.more then copy(j) end
  local k = n
  flat[k + 1], flat[k + 2], flat[k + 3], flat[k + 4] = 'score', score, 'events', '1'
  flat[k + 5], flat[k + 6] = 'first', 'pending ' .. position
  call('HSET', j.key, unpack(flat, 1, k + 6))
  return position, size
end

-- The position of a job among those that one call adds. Behind the last one of its lane it is the next, as long as no
-- other lane of its class waits; of the others, fewer and fewer lanes are counted.
function Q.next_position(u, r, shared)
  local last, score = shared.last, tonumber(r.score)
  if last and last.class == r.class and last.priority == r.priority and score >= last.score then
    last.position, last.score = last.position + 1, score
    return last.position, true
  end
  local position, exact, others = Q.position(u, r, shared.lanes)
  shared.lanes = math.max(2, math.floor(shared.lanes / 2))
  local alone = shared.many and others == 0 and Q.is_alone(u, r.class, r.tenant)
  shared.last = alone and {
    class = r.class, priority = r.priority, score = score, position = position,
    behind = Q.setting(u, 'aging_ms') == 0 and Q.behind(u, r),
  } or nil
  return position, exact
end
