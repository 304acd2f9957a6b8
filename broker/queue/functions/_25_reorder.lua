-- Moving waiting jobs: another priority, the front, aging.

local LOWEST, HIGHEST = -100, 100

-- Gives a pending job another place; `r.priority` has been set.
local function replace(u, r, score)
  Q.lane_remove(u, r)
  Q.put(u, r, 'score', score)
  Q.lane_add(u, r)
end

local function in_lane(r)
  return r.status == 'pending' and not r.due_at
end

function Q.set_priority(u, r, priority)
  priority = math.max(LOWEST, math.min(HIGHEST, priority))
  if tostring(priority) == r.priority then return end
  Q.put(u, r, 'priority', Q.int(priority))
  if in_lane(r) then
    replace(u, r, Q.score(u, priority, r.tenant, Q.lane_class(r)))
  elseif r.score then
    Q.put(u, r, 'score', nil)
  end
end

-- Puts a job before all others of its priority.
function Q.to_front(u, r)
  local score = Q.front_score(u, tonumber(r.priority))
  if in_lane(r) then replace(u, r, score) else Q.put(u, r, 'score', score) end
end

-- Lifts jobs that waited for `aging_ms` at their level by one level; `age` is a ZSET of waiting jobs by next lift.
function Q.age(u, limit)
  local P, step = u.P, Q.setting(u, 'aging_ms')
  if step <= 0 then return 0 end
  local over = call('ZRANGEBYSCORE', P .. 'age', '-inf', u.ms, 'LIMIT', 0, limit)
  for _, job in ipairs(over) do
    local r = Q.job(u, job)
    local level = r and r.score and Q.level_of(tonumber(r.score))
    if not r or r.status ~= 'pending' or not level or level >= HIGHEST then
      call('ZREM', P .. 'age', job)
    else
      call('ZADD', P .. 'age', Q.int(u.now + step), job)
      if in_lane(r) then replace(u, r, Q.score(u, level + 1, r.tenant, Q.lane_class(r))) end
    end
  end
  return #over
end
