-- The bodies of a submit's jobs: spec and payload in one, written together and before the jobs' records: a job that is
-- known has its body, whatever fails in between.

-- Key and body in turn, how many of these there are, and how many bytes. One list for all calls.
local bodies, last, bytes = {}, 0, 0

local MANY, MANY_BYTES = 1000, 2 ^ 20 -- of one write

local function drop()
  for i = 1, last do bodies[i] = nil end
  last, bytes = 0, 0
end

local function write()
  if last == 2 then
    call('SET', bodies[1], bodies[2])
  elseif last > 0 then
    call('MSET', unpack(bodies, 1, last))
  end
  drop()
end

-- Takes a job's body; answers its size. Redis' Lua hashes each string over its whole length, so a caller sends the body
-- joined (`spec_len` says where it divides); a previous release sends `spec` and `payload` apart.
local function add(u, j)
  local body = j.spec_len and j.payload or (j.spec or '') .. (j.payload or '')
  local size = #body
  bodies[last + 1], bodies[last + 2] = u.P .. 'b:' .. j.id, body
  last, bytes = last + 2, bytes + size
  if bytes > MANY_BYTES or last > MANY then write() end
  return size
end

-- Writes the bodies of the jobs that are to be added; each then has its `size`.
function Q.add_bodies(u, jobs, plan)
  drop() -- what is left of a submit that failed half way
  for i, j in ipairs(jobs) do
    if not plan[i] then j.size = add(u, j) end
  end
  write()
end
