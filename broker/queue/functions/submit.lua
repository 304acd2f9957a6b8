-- emq_submit: adds jobs.
-- Guarantee: each job is added whole or refused whole, one answer a job; a repeated call answers as the first did.
-- Refused cleanly when Redis has no memory left.
-- Arguments: `tenant` and its limits, then for each job `job <id>` and its own (see docs/queue.md).
-- Answer: an array of `ok` | `duplicate` | `conflict` | `queue_full` | `rate_limited` |
-- `not_found` with their pairs.

-- The parents that are still open, and the one that already failed and must not.
local function open_parents(u, j)
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
  local at = math.max(tonumber(j.start_at or 0) or 0, j.delay_ms and u.now + tonumber(j.delay_ms) or 0)
  return at > u.now and at or nil
end

-- Puts a new job where it waits.
local function place(u, r, j)
  local open, failed = open_parents(u, j)
  local due = start_time(u, j)
  if due then Q.put(u, r, 'due_at', Q.int(due)) end
  if open[1] then
    Q.put(u, r, 'deps', Q.int(#open))
    Q.put(u, r, 'parents', table.concat(open, '\n'))
  end
  local status = (open[1] and 'blocked') or (due and 'scheduled') or 'pending'
  Q.put(u, r, 'status', status)
  Q.enter(u, r, status)
  if r.expires_at then call('ZADD', u.P .. 'expiry', r.expires_at, r._id) end
  if status ~= 'pending' then Q.pin(u, r, 1) end
  if status == 'scheduled' then call('ZADD', u.P .. 'due', r.due_at, r._id) end
  if failed then
    Q.unwait(u, r)
    Q.fail_finally(u, r, 'dependency_failed', Q.error('dependency_failed',
      'The job ' .. failed._id .. ' that this one depends on is ' .. failed.status .. '.',
      '{"job_id":' .. Q.json(failed._id) .. ',"status":"' .. failed.status .. '"}'))
  elseif status == 'pending' then
    Q.put(u, r, 'score', Q.score(u, tonumber(r.priority), r.tenant, r.class))
    Q.lane_add(u, r)
  end
end

local function use_class(u, j, shared)
  local c = Q.class(u, j.class)
  if not c.exists then
    local served = Q.new_class(u, j.class, j.atoms or '', tonumber(j.vram_mb or 0) or 0, j.kind or '')
    shared.new[j.class] = served
  elseif u.now - c.used > 3600000 then
    call('HSET', u.P .. 'c:' .. j.class, 'used', u.ms)
    call('ZADD', u.P .. 'classes', u.ms, j.class)
    c.used = u.now
  end
end

local function add(u, tenant, j, arrival, shared)
  use_class(u, j, shared)
  local r = Q.new_record(u, tenant, j, arrival)
  if j.idem and j.idem ~= '' then
    call('SET', u.P .. 'q:' .. tenant .. ':' .. j.idem, j.id .. ' ' .. (j.body or ''),
      'PX', Q.setting(u, 'idem_ttl_ms'))
  end
  if r.group then Q.group_add(u, r) end
  if r.labels then Q.index_labels(u, r) end
  place(u, r, j)
  local position, exact
  if r.status == 'pending' and not r.finished_at then
    position, exact = Q.next_position(u, r, shared)
  end
  if not r.finished_at then Q.tell_first(u, r, position) end
  local notified = r.status == 'pending' and not Q.tenant(u, tenant).paused and Q.wake(u, r.class)
  local answer = {
    'ok', 'job_id', j.id, 'status', r.status, 'position', position and Q.int(position) or '',
    'exact', exact and '1' or '0', 'notified', notified and '1' or '0', 'missing', '', 'created_at', r.created_at,
  }
  if not notified then -- else there is a worker that has all of it
    shared.classes[j.class] = shared.classes[j.class] or {}
    table.insert(shared.classes[j.class], answer)
  end
  return answer
end

local function submit(keys, argv)
  local u = Q.open(keys[1], 'max_queued', 'aging_ms')
  local a, jobs = Q.read_jobs(argv)
  local tenant = a.tenant or ''
  a.tenant = tenant
  local plan = Q.plan_submit(u, a, jobs)
  local answers, shared = {}, { classes = {}, new = {}, lanes = 64, many = #jobs > 1 }
  local arrival = 0
  if plan.adds > 0 then
    arrival = call('INCRBY', u.P .. 'arrivals', plan.adds) - plan.adds
    if plan.room.newcomer then call('SADD', u.P .. 'tenants', tenant) end
    Q.count(u, 'submitted_total', plan.adds)
    Q.count(u, tenant .. ':submitted_total', plan.adds)
    for _, b in ipairs(plan.buckets) do Q.spend(u, b, plan.adds) end
  end
  for i, j in ipairs(jobs) do
    if plan[i] then
      answers[i] = plan[i]
    else
      arrival = arrival + 1
      answers[i] = add(u, tenant, j, arrival, shared)
    end
  end
  for i, answer in ipairs(answers) do
    if answer[1] == 'twin' then
      local r = u.jobs[answer[2]]
      answers[i] = { 'duplicate', 'job_id', r._id, 'status', r.status, 'position', '', 'exact', '0', 'notified', '0',
        'missing', '', 'created_at', r.created_at }
    end
  end
  Q.tell_missing(u, shared.classes, shared.new)
  Q.commit(u)
  return answers
end

define{ function_name = 'emq_submit', callback = submit }
