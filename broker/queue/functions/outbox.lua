-- emq_outbox: takes webhook deliveries that are due.
-- Guarantee: what is taken is due again after `lease_ms`, so a dying broker loses none; two never take the same.
-- Arguments: `limit` `lease_ms`.
-- Answer: `ok` `entries` (lines `<job> <event> <attempt>.<round> <how often it was taken>`).
local function outbox(keys, argv)
  local u, a = Q.begin(keys, argv)
  local limit = math.max(1, math.min(100, tonumber(a.limit or 20) or 20))
  local due = call('ZRANGEBYSCORE', u.P .. 'outbox', '-inf', u.ms, 'LIMIT', 0, limit)
  local lines = {}
  for i, entry in ipairs(due) do
    call('ZADD', u.P .. 'outbox', Q.int(u.now + (tonumber(a.lease_ms) or 60000)), entry)
    lines[i] = entry .. ' ' .. call('HINCRBY', u.P .. 'outbox_tries', entry, 1)
  end
  return { 'ok', 'entries', table.concat(lines, '\n') }
end

define{ function_name = 'emq_outbox', callback = outbox, flags = { 'allow-oom' } }
