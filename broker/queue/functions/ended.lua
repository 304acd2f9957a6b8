-- emq_ended: jobs by when they ended, the latest first: what history is made of.
-- Guarantee: reads only; cost follows `limit`, and looks at four times as many jobs at most, 500 in all.
-- Arguments: `status` (lines; empty: completed and failed) `since` `until` (ms, exclusive and inclusive; empty: all)
-- `limit` (100, at most 200), filters `tenant` `worker`.
-- Answer: `ok` `next` (an `until` that goes on; empty: no more) then `job` <nested `ok` with `job_id` and the fields
-- below> for each. Jobs of the page's last millisecond are never cut in two: a page may be longer by them.
local FIELDS = {
  'status', 'tenant', 'worker_id', 'class', 'models', 'priority', 'attempt', 'created_at', 'claimed_at', 'started_at',
  'executed_at', 'finished_at', 'error_code', 'error',
}

local function row(job, values)
  local out, n = { 'ok', 'job_id', job }, 3
  for i = 1, #FIELDS do
    if values[i] then
      out[n + 1], out[n + 2] = FIELDS[i], values[i]
      n = n + 2
    end
  end
  return out
end

-- Ids and times of up to `n` jobs of all statuses, the latest first, whole milliseconds at the end.
local function latest(u, a, n)
  local wanted, found = Q.lines(a.status), {}
  if #wanted == 0 then wanted = { 'completed', 'failed' } end
  local top, bottom = a['until'] or '+inf', a.since and '(' .. a.since or '-inf'
  local full = false
  for _, status in ipairs(wanted) do
    local got = call('ZREVRANGEBYSCORE', u.P .. 'fin:' .. status, top, bottom, 'WITHSCORES', 'LIMIT', 0, n)
    full = full or #got == 2 * n
    for i = 1, #got, 2 do found[#found + 1] = { job = got[i], at = tonumber(got[i + 1]) } end
  end
  table.sort(found, function(x, y) return x.at > y.at or (x.at == y.at and x.job > y.job) end)
  if not full and #found <= n then return found, false end
  local last = found[math.min(n, #found)].at
  while found[1] and found[#found].at <= last do found[#found] = nil end
  for _, status in ipairs(wanted) do
    local key, at = u.P .. 'fin:' .. status, Q.int(last)
    for _, job in ipairs(call('ZRANGEBYSCORE', key, at, at, 'LIMIT', 0, 250)) do
      found[#found + 1] = { job = job, at = last }
    end
  end
  return found, true
end

-- Whether the filters let a job in.
local function is_asked(u, a, job)
  if not a.tenant and not a.worker then return true end
  local of = call('HMGET', u.P .. 'j:' .. job, 'tenant', 'worker_id')
  return (not a.tenant or of[1] == a.tenant) and (not a.worker or of[2] == a.worker)
end

local function ended(keys, argv)
  local u, a = Q.begin(keys, argv)
  for name, value in pairs(a) do
    if value == '' then a[name] = nil end
  end
  local limit = math.max(1, math.min(200, tonumber(a.limit or 100) or 100))
  local found, more = latest(u, a, (a.tenant or a.worker) and math.min(500, 4 * limit) or limit)
  local out, given, last = { 'ok', 'next', '' }, 0, nil
  for _, entry in ipairs(found) do
    if given >= limit and entry.at < last then
      more = true
      break
    end
    last = entry.at
    local values = is_asked(u, a, entry.job) and call('HMGET', u.P .. 'j:' .. entry.job, unpack(FIELDS))
    if values and values[1] then
      given = given + 1
      out[#out + 1] = 'job'
      out[#out + 1] = row(entry.job, values)
    end
  end
  if more and last then out[3] = Q.int(last - 1) end
  return out
end

define{ function_name = 'emq_ended', callback = ended, flags = { 'no-writes' } }
