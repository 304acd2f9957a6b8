-- emq_job: a job's record, or those of several.
-- Guarantee: reads only.
-- Arguments: `job`, or `jobs` (lines, at most 25); `tenant` (empty: any).
-- Answer: `ok` with the record's fields, `position`, `exact`; of a waiting job also `missing` (see emq_submit) and
-- `held` (what holds it back: `pool`, `tenant`: paused, `cap`: as many run as may); `not_found`.
-- To `jobs`: `ok` then `job` <nested `ok` with a record> for each that there is, without these.
local MOST = 25

local function held(u, r)
  if r.status ~= 'pending' then return '' end
  if u.paused then return 'pool' end
  if Q.tenant(u, r.tenant).paused then return 'tenant' end
  return Q.held_back(u, r.tenant) and 'cap' or ''
end

local function several(u, a)
  local out = { 'ok' }
  for i, id in ipairs(Q.lines(a.jobs)) do
    local r = i <= MOST and Q.job_of(u, id, a.tenant)
    if r then
      out[#out + 1] = 'job'
      out[#out + 1] = Q.record(u, r, { 'ok' }, true)
    end
  end
  return out
end

local function job(keys, argv)
  local u, a = Q.begin(keys, argv)
  if a.jobs then return several(u, a) end
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

define{ function_name = 'emq_job', callback = job, flags = { 'no-writes' } }
