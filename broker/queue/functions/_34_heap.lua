-- A heap of what is read in parts, for merges: entries with `score`, `key` and `step` (goes on; false: no more).

-- Of equal scores a claim takes the first class, in it the first tenant, of that the first arrival: their `key`.
function Q.comes_first(x, y)
  return x.score < y.score or (x.score == y.score and x.key < y.key)
end

-- Restores a heap's order (the first on top) from `at` down.
local function sink(heap, at)
  while true do
    local best, left = at, 2 * at
    for child = left, left + 1 do
      if heap[child] and Q.comes_first(heap[child], heap[best]) then best = child end
    end
    if best == at then return end
    heap[at], heap[best] = heap[best], heap[at]
    at = best
  end
end

-- Adds an entry.
function Q.heap_push(heap, entry)
  local at = #heap + 1
  heap[at] = entry
  while at > 1 do
    local up = math.floor(at / 2)
    if not Q.comes_first(entry, heap[up]) then return end
    heap[at], heap[up] = heap[up], entry
    at = up
  end
end

-- Goes on to the next of the source on top; one that has no more leaves the heap.
function Q.heap_next(heap)
  if heap[1].step() then return sink(heap, 1) end
  local last = table.remove(heap)
  if not heap[1] then return end
  heap[1] = last
  sink(heap, 1)
end
