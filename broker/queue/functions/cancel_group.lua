-- emq_cancel_group: cancels the jobs of a group that have not ended.
-- Guarantee: at most `limit` (100) jobs a call; `more` says that some are left.
-- Arguments: `tenant` `group` `reason` `limit`.
-- Answer: `ok` `cancelled` `more`; `not_found`.
local function cancel_group(keys, argv)
  local u, a = Q.begin(keys, argv)
  local tenant, group = a.tenant or '', a.group or ''
  if redis.call('EXISTS', Q.group_key(u, tenant, group)) == 0 then return { 'not_found' } end
  local limit = math.max(1, math.min(1000, tonumber(a.limit or 100) or 100))
  local cancelled, from, more = 0, 0, false
  local members = Q.group_members(u, tenant, group)
  while not more do
    local ids = redis.call('ZRANGE', members, from, from + 99)
    if #ids == 0 then break end
    for _, id in ipairs(ids) do
      local r = Q.job(u, id)
      if r and not Q.TERMINAL[r.status] and not r.cancel then
        if cancelled >= limit then
          more = true
          break
        end
        Q.cancel(u, r, a.reason)
        cancelled = cancelled + 1
      end
    end
    from = from + #ids
  end
  Q.commit(u)
  return { 'ok', 'cancelled', Q.int(cancelled), 'more', more and '1' or '0' }
end

redis.register_function{ function_name = 'emq_cancel_group', callback = cancel_group, flags = { 'allow-oom' } }
