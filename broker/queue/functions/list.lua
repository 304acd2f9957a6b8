-- emq_list: jobs, newest first, by arrival.
-- Guarantee: reads only; cost follows `limit`, not the number of jobs.
-- Arguments: `tenant` (empty: all) `status` (lines, empty: all) `limit` `before` (arrival, exclusive).
-- Answer: `ok` `next` (empty: no more) then `job` <nested `ok` with a record> for each.
local ALL = { 'scheduled', 'blocked', 'pending', 'claimed', 'processing', 'completed', 'failed', 'cancelled' }
local TENANTS = 500

-- The index sets that hold jobs of these statuses.
local function sources(u, a, wanted)
  local tenants = { a.tenant }
  if not a.tenant or a.tenant == '' then tenants = redis.call('SMEMBERS', u.P .. 'tenants') end
  local keys, seen = {}, {}
  for i = 1, math.min(#tenants, TENANTS) do
    for _, status in ipairs(wanted) do
      local home = Q.HOME[status]
      local key = home and u.P .. home .. ':' .. tenants[i] .. (home == 'f' and ':' .. status or '')
      if key and not seen[key] then
        seen[key] = true
        keys[#keys + 1] = key
      end
    end
  end
  return keys
end

-- A set read from the newest entry on, a few at a time.
local function reader(key, before)
  local source, at = { key = key, buffer = {} }, 1
  function source.step()
    if at > #source.buffer and not source.over then
      local got = redis.call('ZREVRANGEBYSCORE', key, before, '-inf', 'WITHSCORES', 'LIMIT', 0, 8)
      source.over = #got < 16
      source.buffer, at = got, 1
      if got[1] then before = '(' .. got[#got] end
    end
    source.job, source.arrival = source.buffer[at], tonumber(source.buffer[at + 1] or nil)
    at = at + 2
  end
  source.step()
  return source
end

local function newest(readers)
  local best
  for _, source in ipairs(readers) do
    if source.job and (not best or source.arrival > best.arrival) then best = source end
  end
  return best
end

local function list(keys, argv)
  local u, a = Q.begin(keys, argv)
  local limit = math.max(1, math.min(500, tonumber(a.limit or 50) or 50))
  local wanted, is_wanted = Q.lines(a.status), {}
  if #wanted == 0 then wanted = ALL end
  for _, status in ipairs(wanted) do is_wanted[status] = true end
  local before = a.before and a.before ~= '' and '(' .. a.before or '+inf'
  local readers = {}
  for _, key in ipairs(sources(u, a, wanted)) do readers[#readers + 1] = reader(key, before) end
  local out, found, last = { 'ok', 'next', '' }, 0, nil
  for _ = 1, limit * 20 do
    local source = newest(readers)
    if not source or found == limit then
      if source then out[3] = last end
      return out
    end
    local r = Q.job(u, source.job)
    last = Q.int(source.arrival)
    if r and is_wanted[r.status] then
      found = found + 1
      out[#out + 1] = 'job'
      out[#out + 1] = Q.record(u, r, { 'ok' })
    end
    source.step()
  end
  out[3] = last or ''
  return out
end

redis.register_function{ function_name = 'emq_list', callback = list, flags = { 'no-writes' } }
