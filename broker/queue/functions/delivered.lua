-- emq_delivered: a webhook delivery was tried.
-- Guarantee: its log and what becomes of it change together; a repeated call logs once more and changes nothing else.
-- Arguments: `entry` (without the count), `log` (JSON), `again_ms` (absent: no further try).
-- Answer: `ok`.
local KEPT, LIFE_MS = 50, 604800000

local function delivered(keys, argv)
  local u, a = Q.begin(keys, argv)
  local key = u.P .. 'd:' .. string.match(a.entry, '^%S+')
  if a.again_ms then
    redis.call('ZADD', u.P .. 'outbox', 'XX', Q.int(u.now + tonumber(a.again_ms)), a.entry)
  else
    redis.call('ZREM', u.P .. 'outbox', a.entry)
    redis.call('HDEL', u.P .. 'outbox_tries', a.entry)
  end
  redis.call('RPUSH', key, a.log)
  redis.call('LTRIM', key, -KEPT, -1)
  redis.call('PEXPIRE', key, LIFE_MS)
  return { 'ok' }
end

redis.register_function{ function_name = 'emq_delivered', callback = delivered, flags = { 'allow-oom' } }
