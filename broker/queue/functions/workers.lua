-- emq_workers: the workers' records.
-- Guarantee: reads only.
-- Arguments: `worker` (empty: all, those with the latest heartbeat first), `offset` `limit` (100, at most 1,000).
-- Answer: `ok` `next` (the offset that goes on; empty: no more) then `worker`
-- <nested `ok` with `worker_id`, the record, `held` (lines `<job> <phase>`)> for each.
local function row(u, name)
  local w = Q.pairs_of(redis.call('HGETALL', u.P .. 'wk:' .. name))
  if not w.instance then return nil end
  local out, held = { 'ok', 'worker_id', name }, {}
  for field, value in pairs(w) do
    if field ~= 'tokens' then
      out[#out + 1] = field
      out[#out + 1] = value
    end
  end
  if not w.gone then
    for _, job in ipairs(redis.call('ZRANGE', u.P .. 'held:' .. w.instance, 0, -1)) do
      held[#held + 1] = job .. ' ' .. (redis.call('HGET', u.P .. 'j:' .. job, 'phase') or '')
    end
  end
  out[#out + 1] = 'held'
  out[#out + 1] = table.concat(held, '\n')
  return out
end

local function workers(keys, argv)
  local u, a = Q.begin(keys, argv)
  local from, limit = tonumber(a.offset or 0) or 0, math.max(1, math.min(1000, tonumber(a.limit or 100) or 100))
  local names, more = { a.worker }, false
  if not a.worker or a.worker == '' then
    names = redis.call('ZREVRANGE', u.P .. 'workers', from, from + limit)
    more = #names > limit
    names[limit + 1] = nil
  end
  local out = { 'ok', 'next', more and Q.int(from + limit) or '' }
  for _, name in ipairs(names) do
    local found = row(u, name)
    if found then
      out[#out + 1] = 'worker'
      out[#out + 1] = found
    end
  end
  return out
end

redis.register_function{ function_name = 'emq_workers', callback = workers, flags = { 'no-writes' } }
