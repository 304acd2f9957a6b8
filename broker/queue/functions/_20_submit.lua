-- Submitting: the checks of all jobs come first, then the writes.

-- What few jobs have: `own` is what such a job is to be looked at for by itself, `more` what its record has besides.
local RARE = {
  delay_ms = 'own', start_at = 'own', expires_ms = 'own', idem = 'own', depends_on = 'own', group = 'own',
  labels = 'own', job_type = 'more', max_attempts = 'more', on_parent_failure = 'more', timeout_s = 'more',
  est = 'more', hook = 'more', trace = 'more',
}

-- Reads what holds for all jobs (`tenant …`) and the sections that `job <id>` begins, or `again <id>` where the job is
-- of the class of the one before it, and its spec as long unless it says how long.
function Q.read_jobs(argv)
  local shared, jobs, n = { tenant = nil }, { nil }, 0
  local into = shared
  for i = 1, #argv - 1, 2 do
    local name, value = argv[i], argv[i + 1]
    if name == 'again' then
      into = { id = value, key = nil, class = into.class, payload = nil, spec_len = into.spec_len, more = nil }
      n = n + 1
      jobs[n] = into
    elseif name == 'job' then
      into = { id = value, key = nil, class = nil, payload = nil, spec_len = nil, atoms = nil, kind = nil, more = nil }
      n = n + 1
      jobs[n] = into
    else
      into[name] = value
      local rare = RARE[name]
      if rare then
        into.more = true
        if rare == 'own' then into.own = true end
      end
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

-- Whether a job of these ids is known.
local function any_known(u, jobs)
  local keys, P = { nil }, u.P .. 'j:'
  for i = 1, #jobs do
    local j = jobs[i]
    local key = P .. j.id
    keys[i], j.key = key, key
  end
  return keys[1] and call('EXISTS', unpack(keys)) > 0
end

-- A job that is known already: by its id (a repeated call), or by its idempotency key.
local function known(u, tenant, j, plan)
  local r = plan.known and Q.job(u, j.id)
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

-- What a job is answered at once; nil when it may be added.
local function looked_at(u, tenant, j, plan)
  local answer = known(u, tenant, j, plan)
  if answer or not j.depends_on then return answer end
  local parents, unknown = parents_of(u, tenant, j, plan)
  if unknown then return { 'not_found', 'job_id', unknown } end
  j.parents = parents
  return nil
end

-- Decides about each job without a write: an answer, or a plan to add it.
function Q.plan_submit(u, a, jobs)
  local tenant = a.tenant
  local plan = { nil, ids = { a = nil }, idem = {}, adds = 0, bytes = 0, room = Q.room(u, a), buckets = Q.rates(u, a),
    known = any_known(u, jobs) }
  for i, j in ipairs(jobs) do
    local id, size = j.id, #(j.payload or '')
    local answer = (j.own or plan.known or plan.ids[id]) and looked_at(u, tenant, j, plan)
      or Q.no_room(plan, size)
    if not answer then
      plan.adds, plan.bytes, plan.ids[id] = plan.adds + 1, plan.bytes + size, true
      if j.idem and j.idem ~= '' then plan.idem[j.idem] = id .. ' ' .. (j.body or '') end
    end
    plan[i] = answer or false
  end
  return plan
end
