-- emq_cancel_group: cancels the jobs of a group that have not ended.
-- Guarantee: at most `limit` (25, at most that) jobs a call; `more`: call again, it goes on where this one stopped.
-- Arguments: `tenant` `group` `reason` `limit`.
-- Answer: `ok` `cancelled` `more`; `not_found`.
local LOOKS = 1000 -- members that one call looks at: most of a large group may have ended

-- Cancels members from an arrival on. Answers how many, and the arrival where it stopped (nil: it saw them all).
local function cancel_from(u, members, from, limit, reason)
  local cancelled, looked = 0, 0
  while true do
    local part = call('ZRANGEBYSCORE', members, from, '+inf', 'WITHSCORES', 'LIMIT', 0, 100)
    if #part == 0 then return cancelled, nil end
    for i = 1, #part, 2 do
      if cancelled >= limit or looked >= LOOKS then return cancelled, part[i + 1] end
      looked = looked + 1
      local now = call('HMGET', u.P .. 'j:' .. part[i], 'status', 'cancel')
      if now[1] and not Q.TERMINAL[now[1]] and not now[2] then
        Q.cancel(u, Q.job(u, part[i]), reason)
        cancelled = cancelled + 1
      end
      from = '(' .. part[i + 1]
    end
  end
end

local function cancel_group(keys, argv)
  local u, a = Q.begin(keys, argv)
  local tenant, group = a.tenant or '', a.group or ''
  local key = Q.group_key(u, tenant, group)
  if call('EXISTS', key) == 0 then return { 'not_found' } end
  local limit = math.max(1, math.min(25, tonumber(a.limit or 25) or 25))
  local from = call('HGET', key, 'cancel_from') or '-inf'
  local cancelled, stopped = cancel_from(u, Q.group_members(u, tenant, group), from, limit, a.reason)
  if stopped then
    call('HSET', key, 'cancel_from', stopped)
  else
    call('HDEL', key, 'cancel_from')
  end
  Q.commit(u)
  return { 'ok', 'cancelled', Q.int(cancelled), 'more', stopped and '1' or '0' }
end

define{ function_name = 'emq_cancel_group', callback = cancel_group, flags = { 'allow-oom' } }
