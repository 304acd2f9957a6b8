-- What a submit may add: the pool's room, the tenant's, and how many a second.

local NONE = {}

local function left(limit, used)
  limit = tonumber(limit or 0)
  return limit > 0 and limit - used or math.huge
end

-- What there is room for: jobs in the pool (`pool`), jobs and bytes of the tenant (`tenant`, `bytes`).
function Q.room(u, a)
  local t = Q.tenant(u, a.tenant)
  local names = Q.counters_of(a.tenant)
  local got = call('HMGET', u.P .. 'count', 'pending', 'scheduled', 'blocked', names.pending, names.scheduled,
    names.blocked, names.bytes, names.submitted_total, 'submitted_total')
  u.had = {
    pending = got[1] or 0, scheduled = got[2] or 0, blocked = got[3] or 0, [names.pending] = got[4] or 0,
    [names.scheduled] = got[5] or 0, [names.blocked] = got[6] or 0, [names.bytes] = got[7] or 0,
    [names.submitted_total] = got[8] or 0, submitted_total = got[9] or 0,
  }
  local all, ours = (got[1] or 0) + (got[2] or 0) + (got[3] or 0), (got[4] or 0) + (got[5] or 0) + (got[6] or 0)
  return {
    newcomer = not got[8], pool = left(Q.setting(u, 'max_queued'), all),
    bytes = left(a.max_bytes, tonumber(got[7] or 0)),
    tenant = math.min(left(t.max_queued, ours), left(a.max_queued, ours)),
  }
end

-- The buckets that a submit takes a token a job from: the tenant's and the key's, where they have a rate.
function Q.rates(u, a)
  if not (a.tenant_rate or a.key_rate) then return NONE end
  local found = {}
  for scope, name in pairs({ tenant = a.tenant, key = a.key }) do
    local rate = tonumber(a[scope .. '_rate'] or 0)
    if rate > 0 then
      local b = Q.bucket(u, u.P .. 'rate:' .. scope .. ':' .. name, rate, math.max(1, 2 * rate))
      b.scope = scope
      found[#found + 1] = b
    end
  end
  return found
end

-- Why one more job, with a payload of so many bytes, is not taken; nil when it is.
function Q.no_room(plan, size)
  local free = plan.room
  if plan.adds < free.pool and plan.adds < free.tenant and plan.bytes + size <= free.bytes
    and not plan.buckets[1] then return nil end
  for _, scope in ipairs({ 'pool', 'tenant' }) do
    if plan.adds >= free[scope] then return { 'queue_full', 'scope', scope, 'retry_after_ms', '5000' } end
  end
  if plan.bytes + size > free.bytes then
    return { 'queue_full', 'scope', 'bytes', 'retry_after_ms', '5000' }
  end
  for _, b in ipairs(plan.buckets) do
    if b.tokens < plan.adds + 1 then
      local ms = Q.int(Q.bucket_wait(b, plan.adds + 1))
      return { 'rate_limited', 'scope', b.scope, 'retry_after_ms', ms }
    end
  end
  return nil
end
