-- emq_stats: the pool's figures, or a tenant's.
-- Guarantee: reads only.
-- Arguments: `tenant` (empty: all).
-- Answer: `ok` with a count for each status, `<what>_total`, `oldest_job` (that waits longest) and its age `oldest_ms`;
-- for all also `depth` (lines `<priority> <waiting>`), `paused`, `workers`, `workers_idle`, `workers_busy`,
-- `workers_paused`, `workers_draining`, `workers_unhealthy`, `workers_down` (known and gone), `dead`, `failed_hour` (in
-- the last hour).
local COUNTS = {
  'scheduled', 'blocked', 'pending', 'claimed', 'processing', 'completed', 'failed', 'cancelled',
  'submitted_total', 'completed_total', 'failed_total', 'cancelled_total', 'retried_total', 'lost_total', 'running',
  'attempts_total', 'lapsed_total', 'loads_total',
  'est_total', 'est_within_p50_total', 'est_within_p90_total',
}
local TENANTS = 200

local function oldest(u, tenants)
  local job, arrival
  for i = 1, math.min(#tenants, TENANTS) do
    local first = call('ZRANGE', u.P .. 'w:' .. tenants[i], 0, 0, 'WITHSCORES')
    if first[1] and (not arrival or tonumber(first[2]) < arrival) then job, arrival = first[1], tonumber(first[2]) end
  end
  local created = job and call('HGET', u.P .. 'j:' .. job, 'created_at')
  return created and Q.int(u.now - created) or '0', created and job or ''
end

local function depth(u)
  local lines = {}
  for _, level in ipairs(call('SMEMBERS', u.P .. 'levels')) do
    lines[#lines + 1] = level .. ' ' .. (call('HGET', u.P .. 'v:' .. level, 'waiting') or '0')
  end
  return table.concat(lines, '\n')
end

local function fleet(u, out)
  local states = Q.pairs_of(call('HGETALL', u.P .. 'states'))
  local live = call('HLEN', u.P .. 'instances')
  out[#out + 1] = 'workers'
  out[#out + 1] = Q.int(live)
  out[#out + 1] = 'workers_down'
  out[#out + 1] = Q.int(math.max(0, call('ZCARD', u.P .. 'workers') - live))
  for _, name in ipairs({ 'idle', 'busy', 'paused', 'draining', 'unhealthy' }) do
    out[#out + 1] = 'workers_' .. name
    out[#out + 1] = states[name] or '0'
  end
end

local function stats(keys, argv)
  local u, a = Q.begin(keys, argv)
  local one = a.tenant and a.tenant ~= ''
  local names = {}
  for i, name in ipairs(COUNTS) do names[i] = (one and a.tenant .. ':' or '') .. name end
  local values, out = call('HMGET', u.P .. 'count', unpack(names)), { 'ok' }
  for i, name in ipairs(COUNTS) do
    out[#out + 1] = name
    out[#out + 1] = values[i] or '0'
  end
  local age, job = oldest(u, one and { a.tenant } or call('SMEMBERS', u.P .. 'tenants'))
  for _, value in ipairs({ 'oldest_ms', age, 'oldest_job', job }) do out[#out + 1] = value end
  if one then return out end
  local dead = Q.int(call('ZCARD', u.P .. 'dead'))
  local failed = call('ZCOUNT', u.P .. 'fin:failed', Q.int(u.now - 3600000), '+inf')
  local more = { 'failed_hour', Q.int(failed), 'depth', depth(u), 'paused', u.paused and '1' or '0', 'dead', dead }
  for _, value in ipairs(more) do out[#out + 1] = value end
  fleet(u, out)
  return out
end

define{ function_name = 'emq_stats', callback = stats, flags = { 'no-writes' } }
