-- emq_list: jobs, newest first, by arrival; those that all filters match.
-- Guarantee: reads only; cost follows `limit` and a bounded number of looks, not the number of jobs: a page may hold
-- fewer than `limit` jobs (100 at most, 25 over many tenants), and `next` goes on from there.
-- Arguments: `tenant` (empty: all) `status` (lines, empty: all) `limit` `before` (arrival, exclusive), filters `worker`
-- `error` (code of a failed job) `model` (heavy) `group` `labels` (lines, 8 hex each) `dead` (1) `since` `until` (when
-- submitted, ms).
-- Answer: `ok` `next` (empty: no more) then `job` <nested `ok` with a record> for each.
local ALL = { 'scheduled', 'blocked', 'pending', 'claimed', 'processing', 'completed', 'failed', 'cancelled' }
local TENANTS, LOOKS, MOST = 500, 500, 100

-- The index sets of a tenant that hold jobs of the wanted statuses of the given homes.
local function sets(u, tenant, wanted, homes)
  local keys, seen = {}, {}
  for _, status in ipairs(wanted) do
    local home, filled = Q.HOME[status], not u.filled or u.filled[tenant .. ':' .. status]
    if home and filled and string.find(homes, home, 1, true) and not seen[home == 'f' and status or home] then
      seen[home == 'f' and status or home] = true
      keys[#keys + 1] = u.P .. home .. ':' .. tenant .. (home == 'f' and ':' .. status or '')
    end
  end
  return keys
end

-- The `<tenant>:<status>` that have jobs: of many tenants, most sets are empty.
local function filled(u, tenants, wanted)
  local fields, found, key = {}, {}, u.P .. 'count'
  for i, n in ipairs(call('HMGET', key, unpack(wanted))) do
    if tonumber(n or 0) > 0 then
      for _, tenant in ipairs(tenants) do fields[#fields + 1] = tenant .. ':' .. wanted[i] end
    end
  end
  if #fields == 0 then return found end
  for i, n in ipairs(call('HMGET', key, unpack(fields))) do
    if n and n ~= '0' then found[fields[i]] = true end
  end
  return found
end

-- The terms of the filters: those that hold for jobs of any status, and those that only ended jobs have.
local function terms(a)
  local any, ended = {}, {}
  for digest in string.gmatch(a.labels or '', '%x+') do any[#any + 1] = 'l:' .. digest end
  if a.dead == '1' then ended[#ended + 1] = 'd:' end
  for filter, kind in pairs({ worker = 'w', error = 'e', model = 'm' }) do
    if a[filter] then ended[#ended + 1] = Q.term(kind, a[filter]) end
  end
  return any, ended
end

local function rarest(key, names)
  local best, size
  for _, term in ipairs(names) do
    local n = Q.count_term(key, term)
    if not size or n < size then best, size = term, n end
  end
  return best, size
end

-- The readers of a tenant's jobs: the rarest term that is known for all of them, else a term for the ended ones and the
-- sets of the others, of which there are few, or which are newest first anyway.
local function sources(u, a, tenant, wanted, before, out)
  local key, any, ended = u.P .. 'x:' .. tenant, u.any, u.ended
  local term, size = rarest(key, any)
  if a.group then
    local members = Q.group_members(u, tenant, a.group)
    if not size or call('ZCARD', members) < size then
      out[#out + 1] = Q.by_score(members, before, u.first)
      return
    end
  end
  if not term and #ended > 0 then
    if #sets(u, tenant, wanted, 'f') > 0 then out[#out + 1] = Q.by_term(key, rarest(key, ended), before) end
    if a.error or a.dead == '1' then return end
    local others = sets(u, tenant, wanted, a.worker and 'a' or 'aw')
    for _, set in ipairs(others) do out[#out + 1] = Q.by_score(set, before, u.first) end
  elseif term then
    out[#out + 1] = Q.by_term(key, term, before)
  else
    for _, set in ipairs(sets(u, tenant, wanted, 'awf')) do out[#out + 1] = Q.by_score(set, before, u.first) end
  end
end

local function start(u, a, tenants, wanted)
  local before, latest = tonumber(a.before or nil), tonumber(a['until'] or nil)
  if not latest then return before end
  local keys = {}
  for _, tenant in ipairs(tenants) do
    for _, key in ipairs(sets(u, tenant, wanted, 'awf')) do keys[#keys + 1] = key end
  end
  local bound = Q.arrival_after(u, keys, latest)
  return bound and math.min(bound, before or bound) or before
end

local function list(keys, argv)
  local u, a = Q.begin(keys, argv)
  for name, value in pairs(a) do
    if value == '' then a[name] = nil end
  end
  local wanted, is_wanted = Q.lines(a.status), {}
  if #wanted == 0 then wanted = ALL end
  for _, status in ipairs(wanted) do is_wanted[status] = true end
  local tenants = a.tenant and { a.tenant } or call('SMEMBERS', u.P .. 'tenants')
  while #tenants > TENANTS do tenants[#tenants] = nil end
  if #tenants > 8 then
    u.first, u.filled = 2, filled(u, tenants, wanted)
  end
  local before, readers = start(u, a, tenants, wanted), {}
  local limit = math.max(1, math.min(u.first and MOST / 4 or MOST, tonumber(a.limit or 50) or 50))
  u.any, u.ended = terms(a)
  for _, tenant in ipairs(tenants) do sources(u, a, tenant, wanted, before, readers) end
  readers = Q.merged(readers)
  local out, found, last = { 'ok', 'next', '' }, 0, nil
  for _ = 1, LOOKS do
    local source = readers[1]
    if not source then return out end
    if found == limit then break end
    local fits, over = Q.matches(u, a, source.job, is_wanted)
    if over then return out end
    last = Q.int(source.arrival)
    if fits then
      found = found + 1
      out[#out + 1] = 'job'
      out[#out + 1] = Q.record(u, Q.job(u, source.job), { 'ok' })
    end
    Q.next_newest(readers)
  end
  out[3] = last or ''
  return out
end

define{ function_name = 'emq_list', callback = list, flags = { 'no-writes' } }
