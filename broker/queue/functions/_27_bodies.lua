-- The bodies of a submit's jobs: spec and payload in one, gathered and written together.

-- Key and body in turn, how many of these there are, and how many bytes. One list for all calls.
local bodies, last, bytes = {}, 0, 0

local MANY, MANY_BYTES = 1000, 2 ^ 20 -- of one write

-- A submit begins; nothing of one that failed half way is left.
function Q.drop_bodies()
  for i = 1, last do bodies[i] = nil end
  last, bytes = 0, 0
end

function Q.write_bodies()
  if last == 2 then
    call('SET', bodies[1], bodies[2])
  elseif last > 0 then
    call('MSET', unpack(bodies, 1, last))
  end
  Q.drop_bodies()
end

-- Takes a job's body; answers its size. Redis' Lua hashes each string over its whole length, so a caller sends the body
-- joined (`spec_len` says where it divides); a previous release sends `spec` and `payload` apart.
function Q.add_body(u, j)
  local body = j.spec_len and j.payload or (j.spec or '') .. (j.payload or '')
  local size = #body
  bodies[last + 1], bodies[last + 2] = u.P .. 'b:' .. j.id, body
  last, bytes = last + 2, bytes + size
  if bytes > MANY_BYTES or last > MANY then Q.write_bodies() end
  return size
end
