-- Dependencies: what the end of a job means for those that wait for it.

local TERMINAL = { completed = true, failed = true, cancelled = true }
Q.TERMINAL = TERMINAL

-- One parent fewer; the last one lets the job go on.
function Q.parent_met(u, r)
  if Q.add(u, r, 'deps', -1) > 0 then return end
  if tonumber(r.due_at or 0) > u.now then
    Q.move(u, r, 'scheduled')
    call('ZADD', u.P .. 'due', r.due_at, r._id)
    Q.update(u, r)
  else
    Q.pin(u, r, -1)
    Q.move(u, r, 'pending')
    Q.enqueue(u, r)
  end
end

-- Whether the end of a parent lets a job go on.
local function good_enough(parent, r)
  return parent.status == 'completed' or r.on_parent_failure == 'run'
end

local function one(u, parent, id)
  local r = Q.job(u, id)
  if not r or r.status ~= 'blocked' then return end
  if good_enough(parent, r) then return Q.parent_met(u, r) end
  Q.unwait(u, r)
  Q.put(u, r, 'deps', nil)
  Q.fail_finally(u, r, 'dependency_failed', Q.error('dependency_failed',
    'The job ' .. parent._id .. ' that this one depends on is ' .. parent.status .. '.',
    '{"job_id":' .. Q.json(parent._id) .. ',"status":"' .. parent.status .. '"}'))
end

-- Makes a blocked job wait for just those of its parents that are still open, and go on or fail when none is.
function Q.wait_again(u, r)
  local open, failed, kids = 0, nil, u.P .. 'kids:'
  for _, id in ipairs(Q.lines(r.parents)) do
    local parent = Q.job(u, id)
    if parent and not TERMINAL[parent.status] then
      open = open + 1
      call('SADD', kids .. id, r._id)
      Q.put(u, parent, 'kids', '1')
    elseif parent then
      call('SREM', kids .. id, r._id)
      if not good_enough(parent, r) then failed = parent end
    end
  end
  Q.put(u, r, 'deps', Q.int(math.max(open, 1)))
  if failed then
    one(u, failed, r._id)
  elseif open == 0 then
    Q.parent_met(u, r)
  end
end

-- Works off what ended in this call; the dependants of a job that has many are left to the sweep.
function Q.cascade_now(u)
  if u.cascade then Q.cascade(u, 20) end
  u.cascade = nil
end

-- Works off ended jobs that others depend on, up to `limit` dependants; true when some are left.
function Q.cascade(u, limit)
  local P = u.P
  while limit > 0 do
    local id = call('LINDEX', P .. 'cascade', 0)
    if not id then return false end
    local parent = Q.job(u, id)
    local kids = {}
    if parent and TERMINAL[parent.status] then kids = call('SPOP', P .. 'kids:' .. id, math.min(limit, 100)) end
    for _, kid in ipairs(kids) do one(u, parent, kid) end
    limit = limit - math.max(1, #kids)
    if call('EXISTS', P .. 'kids:' .. id) == 0 or not (parent and TERMINAL[parent.status]) then
      call('LREM', P .. 'cascade', 1, id)
    end
  end
  return call('EXISTS', P .. 'cascade') == 1
end
