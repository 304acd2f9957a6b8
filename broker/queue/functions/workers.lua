-- emq_workers: the workers' records.
-- Guarantee: reads only, a hundred records at most (of `names` all).
-- Arguments: `worker` (up to 100 lines; empty: all, those with the latest heartbeat first), `offset` `limit` (at most
-- 100) `jobs` (1: with what it does); `names` (1: all names, alone; heartbeats change the order: whoever reads in parts
-- asks for these first).
-- Answer: `ok` `names` (lines), or `ok` `next` (the offset that goes on; empty: no more) then `worker`
-- <nested `ok` with `worker_id`, the record, `held` (lines `<job> <phase>`), with `jobs` also `job` <nested `ok` with
-- `job_id`, some fields of the record, `run_ms` (average of such jobs), `progress` (JSON)> for each> for each.
local MOST = 100
local FIELDS = {
  'status', 'phase', 'tenant', 'attempt', 'priority', 'claimed_at', 'started_at', 'models', 'class', 'stored_progress',
}

-- What a worker does with a job: state, since when, how long such jobs run on the average, the stored progress.
local function work(u, job)
  local out, r = { 'ok', 'job_id', job }, call('HMGET', u.P .. 'j:' .. job, unpack(FIELDS))
  for i = 1, 9 do
    if r[i] then
      out[#out + 1] = FIELDS[i]
      out[#out + 1] = r[i]
    end
  end
  out[#out + 1] = 'run_ms'
  out[#out + 1] = r[9] and call('HGET', u.P .. 'c:' .. r[9], 'run') or ''
  local stored = r[10] and call('GET', u.P .. 'pr:' .. job)
  out[#out + 1] = 'progress'
  out[#out + 1] = stored and string.match(stored, '\n(.*)$') or ''
  return out
end

local function row(u, name, jobs)
  local w = Q.pairs_of(call('HGETALL', u.P .. 'wk:' .. name))
  if not w.instance then return nil end
  local out, held = { 'ok', 'worker_id', name }, {}
  for field, value in pairs(w) do
    if field ~= 'tokens' then
      out[#out + 1] = field
      out[#out + 1] = value
    end
  end
  for _, job in ipairs(call('ZRANGE', u.P .. 'held:' .. w.instance, 0, -1)) do
    held[#held + 1] = job .. ' ' .. (call('HGET', u.P .. 'j:' .. job, 'phase') or '')
  end
  out[#out + 1] = 'held'
  out[#out + 1] = table.concat(held, '\n')
  for _, line in ipairs(jobs and held or {}) do
    out[#out + 1] = 'job'
    out[#out + 1] = work(u, string.match(line, '^(%S+)'))
  end
  return out
end

local function workers(keys, argv)
  local u, a = Q.begin(keys, argv)
  local from, limit = tonumber(a.offset or 0) or 0, math.max(1, math.min(MOST, tonumber(a.limit or 100) or 100))
  if a.names == '1' then
    return { 'ok', 'names', table.concat(call('ZREVRANGE', u.P .. 'workers', 0, -1), '\n') }
  end
  local names, more = Q.lines(a.worker), false
  if not names[1] then
    names = call('ZREVRANGE', u.P .. 'workers', from, from + limit)
    more = #names > limit
    names[limit + 1] = nil
  end
  local out = { 'ok', 'next', more and Q.int(from + limit) or '' }
  for i = 1, math.min(#names, MOST) do
    local found = row(u, names[i], a.jobs == '1')
    if found then
      out[#out + 1] = 'worker'
      out[#out + 1] = found
    end
  end
  return out
end

define{ function_name = 'emq_workers', callback = workers, flags = { 'no-writes' } }
