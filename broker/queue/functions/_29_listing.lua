-- Reading indexes of jobs from the newest arrival on, several at once.

local FIRST, MOST = 8, 64

-- A set read a few entries at a time, `first` to begin with. `fetch(before, n)` answers ids and arrivals in turn,
-- `before` exclusive (nil: all).
local function reader(fetch, before, first)
  local source, at, part = { buffer = {} }, 1, first or FIRST
  function source.step()
    if at > #source.buffer and not source.over then
      source.buffer, at = fetch(before, part), 1
      source.over = #source.buffer < 2 * part
      part = math.min(MOST, 2 * part)
      if source.buffer[1] then before = source.buffer[#source.buffer] end
    end
    source.job, source.arrival = source.buffer[at], source.buffer[at + 1]
    at = at + 2
  end
  source.step()
  return source
end

-- Reads a ZSET of job → arrival.
function Q.by_score(key, before, first)
  return reader(function(from, part)
    local top = from and '(' .. Q.int(from) or '+inf'
    local got = call('ZREVRANGEBYSCORE', key, top, '-inf', 'WITHSCORES', 'LIMIT', '0', Q.int(part))
    for i = 2, #got, 2 do got[i] = tonumber(got[i]) end
    return got
  end, before, first)
end

-- Reads a term of a tenant's search index.
function Q.by_term(key, term, before)
  return reader(function(from, part)
    local top = from and '(' .. term .. '\n' .. string.format('%012x', from) or '(' .. term .. '\11'
    local got, out = call('ZREVRANGEBYLEX', key, top, '[' .. term .. '\n', 'LIMIT', '0', Q.int(part)), {}
    for _, entry in ipairs(got) do
      local arrival, id = string.match(entry, '\n(%x+):(.*)$')
      out[#out + 1] = id
      out[#out + 1] = tonumber(arrival, 16)
    end
    return out
  end, before)
end

-- How many jobs a term of a tenant's search index has.
function Q.count_term(key, term)
  return call('ZLEXCOUNT', key, '[' .. term .. '\n', '(' .. term .. '\11')
end

-- Restores a heap's order (newest on top) from `at` down.
local function sink(heap, at)
  while true do
    local best, left = at, 2 * at
    for child = left, left + 1 do
      if heap[child] and heap[child].arrival > heap[best].arrival then best = child end
    end
    if best == at then return end
    heap[at], heap[best] = heap[best], heap[at]
    at = best
  end
end

-- The readers that have a job as a heap: the first is the one with the newest.
function Q.merged(readers)
  local heap = {}
  for _, source in ipairs(readers) do
    if source.job then heap[#heap + 1] = source end
  end
  for at = math.floor(#heap / 2), 1, -1 do sink(heap, at) end
  return heap
end

-- Goes on to the next newest job.
function Q.next_newest(heap)
  heap[1].step()
  if not heap[1].job then
    local last = table.remove(heap)
    if not heap[1] then return end
    heap[1] = last
  end
  sink(heap, 1)
end

-- An arrival that every job submitted after `ms` has or exceeds, found in the largest of `keys`; nil: none is known.
function Q.arrival_after(u, keys, ms)
  local key, size = nil, 0
  for _, name in ipairs(keys) do
    local n = call('ZCARD', name)
    if n > size then key, size = name, n end
  end
  local low, high = 0, size
  while low < high do
    local middle = math.floor((low + high) / 2)
    local id = call('ZRANGE', key, middle, middle)[1]
    local created = tonumber(call('HGET', u.P .. 'j:' .. id, 'created_at') or 0)
    if created > ms then high = middle else low = middle + 1 end
  end
  local found = key and call('ZRANGE', key, low, low, 'WITHSCORES')
  return found and tonumber(found[2] or nil)
end
