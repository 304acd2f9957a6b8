-- Gathers what a call with many jobs writes to sorted sets (`u.sets`): each set then costs one command.
--
-- Writes to one key keep their order. Whoever reads such a key in the same call writes what was gathered of it first
-- (`Q.write_set`), and so does who writes to it at once.

local MOST = 4000 -- values of one command

-- What is to be written to each of the keys that the call wrote to: `verb`, `key`, `n` and so many values. Tables for
-- all calls, since a new one grows in steps, at a cost each.
local sets, used = {}, 0

local function write(set)
  local n = set.n
  if n == 0 then return end
  set.n = 0
  call(set.verb, set.key, unpack(set, 1, n))
end

-- Makes a key's set ready for values of another command, or for more of them.
local function ready(u, key, verb)
  local set = u.sets[key]
  if set then
    write(set)
  else
    used = used + 1
    set = sets[used]
    if not set then
      set = { key = nil, verb = nil, n = 0 }
      sets[used] = set
    end
    u.sets[key], set.key, set.n = set, key, 0
  end
  set.verb = verb
  return set
end

-- A call with many jobs begins; nothing of one that failed half way is left.
function Q.gather(u)
  used, u.sets = 0, { a = nil, b = nil, c = nil, d = nil }
end

function Q.zadd(u, key, score, member)
  local gathered = u.sets
  if not gathered then return call('ZADD', key, score, member) end
  local set = gathered[key]
  if not set or set.verb ~= 'ZADD' or set.n >= MOST then set = ready(u, key, 'ZADD') end
  local n = set.n
  set[n + 1] = score
  set[n + 2] = member
  set.n = n + 2
end

function Q.zrem(u, key, member)
  local gathered = u.sets
  if not gathered then return call('ZREM', key, member) end
  local set = gathered[key]
  if not set or set.verb ~= 'ZREM' or set.n >= MOST then set = ready(u, key, 'ZREM') end
  local n = set.n + 1
  set[n] = member
  set.n = n
end

-- Writes what was gathered of one key.
function Q.write_set(u, key)
  local set = u.sets and u.sets[key]
  if set then write(set) end
end

function Q.write_sets(u)
  if not u.sets then return end
  for i = 1, used do write(sets[i]) end
  Q.gather(u)
end
