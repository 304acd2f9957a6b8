-- emq_repair: puts one thing right that a consistency check found wrong.
-- Guarantee: records are believed and never changed, except that a held job without a lease goes back to wait;
-- harmless where nothing is wrong. Not bounded like the others: a tenant's recount reads each of its waiting jobs.
-- Arguments: one of `job`; `key` `member` (an index entry without a job); `key` alone (a key that should not stay);
-- `class` `tenant` (a lane's head); `class` alone (its best head); `class` `known` (its place among the classes, and
-- who can run it); `profile` (what it can run); `count <tenant>` (empty: the pool); `level` `lanes` (lines); `worker`;
-- `fleet` (workers as lines, beside those listed: the counts of profiles and states).
-- Answer: `ok`; `not_found`.

local FIND = { n = '^%x%x%x%x%x%x%x%x%x%x%x%x:(.*)$', x = '\n%x%x%x%x%x%x%x%x%x%x%x%x:(.*)$' }
local LEFT_MS = 86400000

-- Removes an entry whose job does not belong there.
local function drop(u, key, member)
  local kind = string.match(key, '^[^:]*')
  local r = Q.job(u, string.match(member, FIND[kind] or '^(.*)$') or member)
  call('ZREM', u.P .. key, member)
  if r then Q.repair_job(u, r) end
  local class, tenant = string.match(key, '^n:([^:]*):(.*)$')
  if class then Q.fix(u, class, tenant) end
end

local function repair_one(u, r)
  if not r then return 'not_found' end
  Q.repair_job(u, r)
  if Q.TERMINAL[r.status] then Q.outlive(u, r) end
  return 'ok'
end

local function repair(keys, argv)
  local u, a = Q.begin(keys, argv)
  local outcome = 'ok'
  if a.job then
    outcome = repair_one(u, Q.job(u, a.job))
  elseif a.key and a.member then
    drop(u, a.key, a.member)
  elseif a.key then
    call('PEXPIRE', u.P .. a.key, LEFT_MS)
  elseif a.class and a.tenant then
    Q.fix(u, a.class, a.tenant)
  elseif a.class and a.known then
    Q.know_again(u, a.class)
  elseif a.class then
    Q.best(u, a.class)
  elseif a.profile then
    if call('ZSCORE', u.P .. 'profiles', a.profile) then Q.compare_again(u, a.profile) end
  elseif a.fleet then
    Q.recount_fleet(u, Q.lines(a.fleet))
  elseif a.count == '' then
    Q.recount_pool(u)
  elseif a.count then
    call('SADD', u.P .. 'tenants', a.count)
    Q.recount_tenant(u, a.count)
  elseif a.level then
    Q.recount_level(u, tonumber(a.level), Q.lines(a.lanes))
  elseif a.worker then
    local w = Q.worker(u, a.worker)
    if w then Q.recount_worker(u, w) else outcome = 'not_found' end
  end
  Q.commit(u)
  return { outcome }
end

define{ function_name = 'emq_repair', callback = repair, flags = { 'allow-oom' } }
