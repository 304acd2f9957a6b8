-- Submitting: the checks of all jobs come first, then the writes.

-- Reads what holds for all jobs (`tenant …`) and the sections that `job <id>` begins.
function Q.read_jobs(argv)
  local shared, jobs = {}, {}
  local into = shared
  for i = 1, #argv - 1, 2 do
    if argv[i] == 'job' then
      into = {
        id = argv[i + 1], class = nil, payload = nil, spec_len = nil, atoms = nil, kind = nil, priority = nil,
        idem = nil, body = nil,
      }
      jobs[#jobs + 1] = into
    else
      into[argv[i]] = argv[i + 1]
    end
  end
  return shared, jobs
end

local function answer_again(u, r, outcome)
  local position, exact = Q.position(u, r, 64)
  return {
    outcome, 'job_id', r._id, 'status', r.status, 'position', position and Q.int(position) or '',
    'exact', exact and '1' or '0', 'notified', '0', 'missing', '', 'created_at', r.created_at,
  }
end

-- A job that is known already: by its id (a repeated call), or by its idempotency key.
local function known(u, tenant, j, plan)
  local r = Q.job(u, j.id)
  if r then
    if r.tenant ~= tenant then return { 'conflict', 'job_id', j.id, 'reason', 'job_id' } end
    return answer_again(u, r, 'ok')
  end
  if plan.ids[j.id] then return { 'conflict', 'job_id', j.id, 'reason', 'job_id' } end
  if not j.idem or j.idem == '' then return nil end
  local stored = plan.idem[j.idem] or call('GET', u.P .. 'q:' .. tenant .. ':' .. j.idem)
  if not stored then return nil end
  local first, body = string.match(stored, '^(%S+) (%S*)$')
  local twin = plan.ids[first]
  r = not twin and Q.job(u, first)
  if not twin and not r then return nil end
  if body ~= (j.body or '') then return { 'conflict', 'job_id', first, 'reason', 'idempotency_key' } end
  return twin and { 'twin', first } or answer_again(u, r, 'duplicate')
end

local function parents_of(u, tenant, j, plan)
  local parents = {}
  for _, id in ipairs(Q.lines(j.depends_on)) do
    local r = Q.job(u, id)
    if not plan.ids[id] and (not r or r.tenant ~= tenant) then return nil, id end
    parents[#parents + 1] = id
  end
  return parents
end

-- Decides about each job without a write: an answer, or a plan to add it.
function Q.plan_submit(u, a, jobs)
  local tenant = a.tenant
  local plan = { ids = {}, idem = {}, adds = 0, bytes = 0, room = Q.room(u, a), buckets = Q.rates(u, a) }
  for i, j in ipairs(jobs) do
    local parents, unknown
    local answer = known(u, tenant, j, plan)
    if not answer then
      parents, unknown = parents_of(u, tenant, j, plan)
      if unknown then answer = { 'not_found', 'job_id', unknown } end
    end
    answer = answer or Q.no_room(plan, j)
    if not answer then
      plan.adds = plan.adds + 1
      plan.bytes = plan.bytes + #(j.payload or '')
      plan.ids[j.id] = true
      if j.idem and j.idem ~= '' then plan.idem[j.idem] = j.id .. ' ' .. (j.body or '') end
      j.parents = parents
    end
    plan[i] = answer or false
  end
  return plan
end
