-- emq_use: counts what is open (sockets, subscriptions) over all brokers, within a limit.
-- Guarantee: never more than `limit` at once, whichever replicas ask; what a dead broker had is free after `ttl_ms`.
-- Arguments: `replica` `ttl_ms`; `changes`: lines `<what> <difference> <limit>` (0: none), all or none of them;
-- `counts`: lines `<what> <number>`, all that this broker has of it.
-- Answer: `ok`; `full` `what` `used`.
local function used(u, key)
  local sum, all = 0, call('HGETALL', key)
  for i = 1, #all, 2 do
    if tonumber(call('ZSCORE', u.P .. 'replicas', all[i]) or 0) > u.now then
      sum = sum + all[i + 1]
    else
      call('HDEL', key, all[i])
    end
  end
  return sum
end

local function use(keys, argv)
  local u, a = Q.begin(keys, argv)
  local ttl, changes = tonumber(a.ttl_ms or 30000), {}
  for what, n, limit in string.gmatch(a.changes or '', '(%S+) (%S+) (%S+)') do
    local change = { what = what, key = u.P .. 'use:' .. what, n = tonumber(n), limit = tonumber(limit) }
    local now = change.n > 0 and change.limit > 0 and used(u, change.key) or 0
    if change.n > 0 and change.limit > 0 and now + change.n > change.limit then
      return { 'full', 'what', what, 'used', Q.int(now) }
    end
    changes[#changes + 1] = change
  end
  call('ZREMRANGEBYSCORE', u.P .. 'replicas', '-inf', u.ms)
  call('ZADD', u.P .. 'replicas', Q.int(u.now + ttl), a.replica)
  call('PEXPIRE', u.P .. 'replicas', Q.int(2 * ttl))
  for what, n in string.gmatch(a.counts or '', '(%S+) (%S+)') do
    changes[#changes + 1] = { key = u.P .. 'use:' .. what, set = n }
  end
  for _, change in ipairs(changes) do
    if change.set then
      call('HSET', change.key, a.replica, change.set)
    elseif call('HINCRBY', change.key, a.replica, change.n) <= 0 then
      call('HDEL', change.key, a.replica)
    end
    call('PEXPIRE', change.key, Q.int(2 * ttl))
  end
  return { 'ok' }
end

define{ function_name = 'emq_use', callback = use, flags = { 'allow-oom' } }
