-- emq_tenant: sets a tenant's share and limits. A weight holds for jobs that are submitted afterwards.
-- Guarantee: a raised cap lets waiting jobs go on at once.
-- Arguments: `tenant` `weight` (> 0) `max_running` `max_queued` (0: none); what is left out stays.
-- Answer: `ok` `weight` `max_running` `max_queued` `paused`.
local function tenant(keys, argv)
  local u, a = Q.begin(keys, argv)
  local name = a.tenant or ''
  local flat = {}
  for _, field in ipairs({ 'weight', 'max_running', 'max_queued' }) do
    local value = tonumber(a[field] or nil)
    if value and (value > 0 or value == 0 and field ~= 'weight') then
      flat[#flat + 1] = field
      flat[#flat + 1] = tostring(value)
    end
  end
  if #flat > 0 then redis.call('HSET', u.P .. 'tn:' .. name, unpack(flat)) end
  Q.unpark(u, name)
  Q.commit(u)
  local t = Q.tenant(u, name)
  return { 'ok', 'weight', tostring(t.weight), 'max_running', Q.int(t.max_running), 'max_queued', Q.int(t.max_queued),
    'paused', t.paused and '1' or '0' }
end

redis.register_function{ function_name = 'emq_tenant', callback = tenant, flags = { 'allow-oom' } }
