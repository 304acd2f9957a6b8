-- emq_job: a job's record.
-- Guarantee: reads only.
-- Arguments: `job` `tenant` (empty: any).
-- Answer: `ok` with the record's fields, `position`, `exact`; of a waiting job also `missing` (see emq_submit) and
-- `held` (what holds it back: `pool`, `tenant`: paused, `cap`: as many run as may); `not_found`.

local function held(u, r)
  if r.status ~= 'pending' then return '' end
  if u.paused then return 'pool' end
  if Q.tenant(u, r.tenant).paused then return 'tenant' end
  return Q.held_back(u, r.tenant) and 'cap' or ''
end

local function job(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r = Q.job_of(u, a.job, a.tenant)
  if not r then return { 'not_found' } end
  local position, exact = Q.position(u, r, 1000)
  local out = { 'ok', 'position', position and Q.int(position) or '', 'exact', exact and '1' or '0',
    'now', u.ms }
  if Q.HOME[r.status] == 'w' then
    local missing = Q.served(u, r.class) and '' or Q.missing(u, r.class)
    local more = { 'missing', missing, 'held', held(u, r) }
    for _, value in ipairs(more) do out[#out + 1] = value end
  end
  return Q.record(u, r, out, true)
end

redis.register_function{ function_name = 'emq_job', callback = job, flags = { 'no-writes' } }
