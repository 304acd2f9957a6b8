-- emq_delivered: a webhook delivery was tried.
-- Guarantee: its log and what becomes of it change together; a repeated call logs once more and changes nothing else.
-- Arguments: `entry` (without the count), `log` (JSON), `again_ms` (absent: no further try).
-- Answer: `ok`.
local KEPT, LIFE_MS = 50, 604800000

local function delivered(keys, argv)
  local u, a = Q.begin(keys, argv)
  local key = u.P .. 'd:' .. string.match(a.entry, '^%S+')
  if a.again_ms then
    call('ZADD', u.P .. 'outbox', 'XX', Q.int(u.now + tonumber(a.again_ms)), a.entry)
  else
    call('ZREM', u.P .. 'outbox', a.entry)
    call('HDEL', u.P .. 'outbox_tries', a.entry)
  end
  call('RPUSH', key, a.log)
  call('LTRIM', key, -KEPT, -1)
  call('PEXPIRE', key, LIFE_MS)
  return { 'ok' }
end

define{ function_name = 'emq_delivered', callback = delivered, flags = { 'allow-oom' } }
