-- emq_tenant: sets a tenant's share and limits. A weight holds for jobs that are submitted afterwards.
-- Guarantee: a raised cap lets waiting jobs go on at once.
-- Arguments: `tenant` `rules` (what its workflows may name, opaque) `weight` (> 0) `max_running` `max_queued` (0: none;
-- `default`: what holds for every tenant); what is left out stays.
-- Answer: `ok` `weight` `max_running` `max_queued` `paused`, and what it has: `queued` `bytes` `running`.
local function tenant(keys, argv)
  local u, a = Q.begin(keys, argv)
  local name, key = a.tenant or '', u.P .. 'tn:' .. (a.tenant or '')
  for _, field in ipairs({ 'weight', 'max_running', 'max_queued' }) do
    local value = tonumber(a[field] or nil)
    if a[field] == 'default' then
      call('HDEL', key, field)
    elseif value and (value > 0 or value == 0 and field ~= 'weight') then
      call('HSET', key, field, tostring(value))
    end
  end
  if a.rules then call('HSET', key, 'rules', a.rules) end
  Q.unpark(u, name)
  Q.commit(u)
  local t = Q.tenant(u, name)
  local got = call('HMGET', u.P .. 'count', name .. ':pending', name .. ':scheduled', name .. ':blocked',
    name .. ':bytes', name .. ':running')
  return { 'ok', 'weight', tostring(t.weight), 'max_running', Q.int(t.max_running), 'max_queued', Q.int(t.max_queued),
    'paused', t.paused and '1' or '0', 'queued', Q.int((got[1] or 0) + (got[2] or 0) + (got[3] or 0)),
    'bytes', got[4] or '0', 'running', got[5] or '0' }
end

define{ function_name = 'emq_tenant', callback = tenant, flags = { 'allow-oom' } }
