-- What runs of a class take: averages that follow, and the last 50 run times.

local WEIGHT, RING, WIDTH = 0.2, 50, 8

local function follow(old, sample)
  return old and old + WEIGHT * (sample - old) or sample
end

-- Counts a run of `exec_ms`; `cold` says that a model was loaded in it.
function Q.measure(u, r, exec_ms, cold)
  exec_ms = tonumber(exec_ms)
  if not exec_ms or exec_ms < 0 then return end
  local key, field = u.P .. 'c:' .. r.class, cold == '1' and 'cold' or 'run'
  local got = redis.call('HMGET', key, field, 'ring', 'runs', 'vram_mb')
  if not got[4] then return end
  local average = follow(tonumber(got[1] or nil), exec_ms)
  local ring = string.sub((got[2] or ''), -(RING - 1) * WIDTH)
    .. string.format('%08d', math.min(99999999, math.floor(exec_ms)))
  redis.call('HSET', key, field, string.format('%.1f', average), 'ring', ring, 'runs', Q.int((got[3] or 0) + 1))
  local c = u.classes[r.class]
  if c then c[field] = average end
end
