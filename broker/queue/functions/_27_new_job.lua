-- What a submit writes of a new job before it is placed, and how it numbers many of them.

-- Copied to the record unless they have the value that follows.
local COPIED = {
  'job_type', 'comfyui', 'max_attempts', '3', 'on_parent_failure', 'fail', 'timeout_s', '', 'group', '', 'est', '',
  'labels', '', 'hook', '', 'trace', '',
}

-- A new job's record and body. Redis' Lua hashes each string over its whole length, so a caller sends the body joined
-- (`spec_len` says where it divides); a previous release sends `spec` and `payload` apart.
function Q.new_record(u, tenant, j, arrival)
  local r = {
    _id = j.id, _key = u.P .. 'j:' .. j.id, _new = true, _was = Q.NOTHING, tenant = tenant, class = j.class,
    arrival = Q.int(arrival), created_at = u.ms, priority = Q.int(tonumber(j.priority or 0)),
    spec_len = j.spec_len or Q.int(#(j.spec or '')), events = nil, first = nil, status = nil,
    score = nil, _bytes = nil, _wire = nil, _member = nil,
  }
  u.jobs[j.id] = r
  u.touched[#u.touched + 1] = r
  for i = 1, #COPIED, 2 do
    local value = j[COPIED[i]]
    if value and value ~= COPIED[i + 1] and value ~= '' then r[COPIED[i]] = value end
  end
  if j.expires_ms then r.expires_at = Q.int(u.now + j.expires_ms) end
  local body = j.spec_len and j.payload or (j.spec or '') .. (j.payload or '')
  r._bytes = #body
  call('SET', u.P .. 'b:' .. j.id, body)
  return r
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
  shared.last = alone and { class = r.class, priority = r.priority, score = score, position = position } or nil
  return position, exact
end
