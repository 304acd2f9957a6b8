-- emq_submit: adds jobs.
-- Guarantee: each job is added whole or refused whole, one answer a job; a repeated call answers as the first did.
-- Refused cleanly when Redis has no memory left.
-- Arguments: `tenant` and its limits, then for each job `job <id>` (`again <id>`) and its own (see docs/queue.md).
-- Answer: an array of `ok` | `duplicate` | `conflict` | `queue_full` | `rate_limited` |
-- `not_found` with their pairs.

-- Puts a pending job into its lane; answers its position and whether that is exact. One that need not wait is in no
-- lane: its worker is the third answer.
local function line_up(u, r, shared)
  Q.field(r, 'score', Q.score(u, tonumber(r.priority), r.tenant, r.class))
  local taker = not shared.many and Q.taker(u, r)
  if taker then return 1, true, taker end
  Q.lane_add(u, r)
  return Q.next_position(u, r, shared)
end

-- The job that says what a class needs: the first of it in a call does.
local function who_says(jobs, class)
  for _, j in ipairs(jobs) do
    if j.class == class and j.atoms then return j end
  end
  return {}
end

local function use_class(u, j, shared)
  local c = Q.class(u, j.class)
  if not c.exists then
    local says = who_says(shared.jobs, j.class)
    shared.new[j.class] = Q.new_class(u, j.class, says.atoms or '', tonumber(says.vram_mb or 0) or 0, says.kind or '')
  elseif u.now - c.used > 3600000 then
    call('HSET', u.P .. 'c:' .. j.class, 'used', u.ms)
    call('ZADD', u.P .. 'classes', u.ms, j.class)
    c.used = u.now
  end
end

-- What is told of a job that was added. A worker is woken for it.
local function told(u, j, status, position, exact, shared, taker)
  local notified = taker or status == 'pending' and shared.wakes and Q.wake(u, j.class)
  local answer = {
    'ok', 'job_id', j.id, 'status', status, 'position', position, 'exact', exact and '1' or '0',
    'notified', notified and '1' or '0', 'missing', '', 'created_at', u.ms,
  }
  if not notified then -- else there is a worker that has all of it
    local of_class = shared.classes[j.class]
    if of_class then of_class[#of_class + 1] = answer else shared.classes[j.class] = { answer } end
  end
  return answer
end

-- Adds a job; answers what its submitter is told.
local function add(u, tenant, j, arrival, shared)
  use_class(u, j, shared)
  local r = Q.new_record(u, tenant, j, arrival)
  if j.idem and j.idem ~= '' then
    call('SET', u.P .. 'q:' .. tenant .. ':' .. j.idem, j.id .. ' ' .. (j.body or ''),
      'PX', Q.setting(u, 'idem_ttl_ms'))
  end
  if r.group then Q.group_add(u, r) end
  if r.labels then Q.index_labels(u, r) end
  local failed = Q.place(u, r, j)
  local status, position, exact, taker = r.status, '', false, nil
  if failed then
    Q.refuse(u, r, failed)
  else
    if status == 'pending' then
      position, exact, taker = line_up(u, r, shared)
      position = Q.int(position)
    end
    Q.field(r, 'events', '1')
    Q.field(r, 'first', status .. (position == '' and ' null' or ' ' .. position))
    Q.write_new(r)
  end
  if taker then Q.give(u, r, taker) end
  return told(u, j, failed and r.status or status, position, exact, shared, taker)
end

-- The same for a job that follows the last one in its lane.
local function add_next(u, j, arrival, shared)
  local position, size = Q.add_behind(u, j, arrival, shared.last)
  shared.added, shared.bytes = shared.added + 1, shared.bytes + size
  return told(u, j, 'pending', position, true, shared)
end

-- Whether a job is like the last one but for what every job has of its own.
local function follows(j, last)
  return last and last.behind and not j.own and j.class == last.class and (j.priority or '0') == last.priority
end

local function submit(keys, argv)
  local u = Q.open(keys[1], 'max_queued', 'aging_ms')
  local a, jobs = Q.read_jobs(argv)
  local tenant = a.tenant or ''
  a.tenant = tenant
  if #jobs > 1 then Q.gather(u) end
  local plan = Q.plan_submit(u, a, jobs)
  local answers, shared = { nil }, {
    jobs = jobs, classes = { a = nil }, new = {}, lanes = 64, many = #jobs > 1, wakes = not Q.tenant(u, tenant).paused,
    added = 0, bytes = 0, last = nil,
  }
  local arrival = 0
  if plan.adds > 0 then
    arrival = call('INCRBY', u.P .. 'arrivals', plan.adds) - plan.adds
    if plan.room.newcomer then call('SADD', u.P .. 'tenants', tenant) end
    Q.count(u, 'submitted_total', plan.adds)
    Q.count(u, tenant .. ':submitted_total', plan.adds)
    for _, b in ipairs(plan.buckets) do Q.spend(u, b, plan.adds) end
    Q.add_bodies(u, jobs, plan)
  end
  for i, j in ipairs(jobs) do
    if plan[i] then
      answers[i] = plan[i]
    else
      arrival = arrival + 1
      answers[i] = follows(j, shared.last) and add_next(u, j, arrival, shared) or add(u, tenant, j, arrival, shared)
    end
  end
  Q.count_entered(u, tenant, shared.added, shared.bytes)
  for i, answer in ipairs(answers) do
    if answer[1] == 'twin' then
      local r = Q.job(u, answer[2])
      answers[i] = { 'duplicate', 'job_id', r._id, 'status', r.status, 'position', '', 'exact', '0', 'notified', '0',
        'missing', '', 'created_at', r.created_at }
    end
  end
  Q.tell_missing(u, shared.classes, shared.new)
  Q.commit(u)
  return answers
end

define{ function_name = 'emq_submit', callback = submit }
