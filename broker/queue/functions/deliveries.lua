-- emq_deliveries: the log of a job's webhook deliveries.
-- Guarantee: reads, unless `redeliver` names an entry of the log: that one is due now, with a fresh count.
-- Arguments: `job` `tenant` (empty: any) `redeliver`.
-- Answer: `ok` `log` (lines of JSON, oldest first); `not_found`.
local function deliveries(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r = Q.job_of(u, a.job, a.tenant)
  if not r then return { 'not_found' } end
  local log = call('LRANGE', u.P .. 'd:' .. a.job, 0, -1)
  if a.redeliver then
    local found = false
    for _, line in ipairs(log) do
      if string.find(line, '"entry":' .. Q.json(a.redeliver), 1, true) then found = true end
    end
    if not found then return { 'not_found' } end
    call('HDEL', u.P .. 'outbox_tries', a.redeliver)
    call('ZADD', u.P .. 'outbox', u.ms, a.redeliver)
  end
  return { 'ok', 'log', table.concat(log, '\n') }
end

define{ function_name = 'emq_deliveries', callback = deliveries, flags = { 'allow-oom' } }
