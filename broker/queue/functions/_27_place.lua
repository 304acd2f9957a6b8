-- Where a new job waits: for its parents, for its time, or to be claimed.

local NONE = {}

-- The parents that are still open, and the one that already failed and must not.
local function open_parents(u, j)
  if not j.parents then return NONE, nil end
  local open, failed = {}, nil
  for _, id in ipairs(j.parents) do
    local parent = Q.job(u, id)
    if not Q.TERMINAL[parent.status] then
      open[#open + 1] = id
      call('SADD', u.P .. 'kids:' .. id, j.id)
      if not parent.kids then Q.put(u, parent, 'kids', '1') end
    elseif parent.status ~= 'completed' and j.on_parent_failure ~= 'run' then
      failed = parent
    end
  end
  return open, failed
end

local function start_time(u, j)
  if not (j.start_at or j.delay_ms) then return nil end
  local at = math.max(tonumber(j.start_at or 0) or 0, j.delay_ms and u.now + tonumber(j.delay_ms) or 0)
  return at > u.now and at or nil
end

-- Puts a new job where it waits, but for its lane; answers the parent that failed already and must not.
function Q.place(u, r, j)
  local open, failed = open_parents(u, j)
  local due = start_time(u, j)
  local status = (open[1] and 'blocked') or (due and 'scheduled') or 'pending'
  r.status = status
  if due then Q.field(r, 'due_at', Q.int(due)) end
  if open[1] then
    Q.field(r, 'deps', Q.int(#open))
    Q.field(r, 'parents', table.concat(open, '\n'))
  end
  Q.enter(u, r, status)
  if r.expires_at then call('ZADD', u.P .. 'expiry', r.expires_at, r._id) end
  if status ~= 'pending' then Q.pin(u, r, 1) end
  if status == 'scheduled' then call('ZADD', u.P .. 'due', r.due_at, r._id) end
  return failed
end

-- A job of which a parent has failed already, and must not, is over before it waits.
function Q.refuse(u, r, failed)
  Q.write_new(r)
  Q.unwait(u, r)
  Q.fail_finally(u, r, 'dependency_failed', Q.error('dependency_failed',
    'The job ' .. failed._id .. ' that this one depends on is ' .. failed.status .. '.',
    '{"job_id":' .. Q.json(failed._id) .. ',"status":"' .. failed.status .. '"}'))
end
