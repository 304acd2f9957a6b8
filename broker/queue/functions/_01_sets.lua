-- Gathers what a call writes to sorted sets: many jobs of one call then cost a set one command.
--
-- Writes to one key keep their order. Whoever reads such a key in the same call writes what was gathered of it first
-- (`Q.write_set`), and so does who writes to it at once.

local MOST = 4000 -- values of one command

-- Of each key that the call has written to: the command, and its values so far. Lists for all calls, since a new one
-- grows in steps, at a cost each.
local keys, verbs, sizes, values, used = {}, {}, {}, {}, 0

local function write(at)
  local n = sizes[at]
  if n == 0 then return end
  sizes[at] = 0
  call(verbs[at], keys[at], unpack(values[at], 1, n))
end

-- The place of a key's values, for one more of a command.
local function place(u, key, verb)
  local at = u.sets[key]
  if not at then
    at = used + 1
    used, u.sets[key] = at, at
    keys[at], verbs[at], sizes[at] = key, verb, 0
    values[at] = values[at] or {}
  elseif verbs[at] ~= verb or sizes[at] >= MOST then
    write(at)
    verbs[at] = verb
  end
  return at
end

-- A call begins; nothing of one that failed half way is left.
function Q.new_sets()
  used = 0
  return { a = nil, b = nil, c = nil, d = nil }
end

function Q.zadd(u, key, score, member)
  local at = place(u, key, 'ZADD')
  local list, n = values[at], sizes[at]
  list[n + 1], list[n + 2] = score, member
  sizes[at] = n + 2
end

function Q.zrem(u, key, member)
  local at = place(u, key, 'ZREM')
  local n = sizes[at] + 1
  values[at][n] = member
  sizes[at] = n
end

-- Writes what was gathered of one key.
function Q.write_set(u, key)
  local at = u.sets[key]
  if at then write(at) end
end

function Q.write_sets(u)
  if used == 0 then return end
  for at = 1, used do write(at) end
  used, u.sets = 0, Q.new_sets()
end
