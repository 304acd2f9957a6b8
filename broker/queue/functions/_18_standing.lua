-- Standing claims: one that finds nothing may stay (`standing`), its token being kept as the worker's `idle`. A submit
-- that brings a job which nothing comes before answers it, in the worker's inbox: the job starts without the trips of
-- a wake-up and a claim. As any hint, that answer may get lost: the claim, made again with its token, gets the job.

local LARGEST = 16384 -- bytes of a job that goes through an inbox

-- Whether an idle worker was there a moment ago: what is given to a dead one waits for the end of its lease.
local function is_there(u, w)
  if u.now - (w.beat or 0) < u.lease / 4 then return true end
  local since = call('ZSCORE', u.P .. 'idle:' .. w.profile, w._id)
  return since and u.now - since < u.lease / 4
end

-- The idle worker whose claim a new job answers; nil when there is none, or it would get another job or none.
function Q.taker(u, r)
  local w = Q.idle_for(u, r.class)
  if not w or w.idle == '1' or r._bytes > LARGEST then return nil end
  if r.expires_at and tonumber(r.expires_at) <= u.now then return nil end
  if Q.held_back(u, r.tenant) or Q.refusal(u, w) or not is_there(u, w) then return nil end
  local waits = call('ZINTERCARD', '2', u.P .. 'i', u.P .. 'ok:' .. w.profile, 'LIMIT', '1') == 1
  if waits or call('EXISTS', u.P .. 'unpark') == 1 then return nil end
  return w
end

-- A claim's answer as a hint: `job`, and the array as Redis itself would send it.
local function as_hint(answer)
  local parts, n = { 'job\n*', #answer, '\r\n' }, 3
  for i = 1, #answer do
    local text = answer[i]
    parts[n + 1], parts[n + 2], parts[n + 3], parts[n + 4], parts[n + 5] = '$', #text, '\r\n', text, '\r\n'
    n = n + 5
  end
  return table.concat(parts)
end

-- Gives a new job, which is in no lane, to a worker whose claim stands.
function Q.give(u, r, w)
  local score = tonumber(r.score)
  local v = Q.virtual(u, Q.level_of(score))
  v.waiting = v.waiting + 1
  Q.advance(u, score)
  if r.expires_at then call('ZREM', u.P .. 'expiry', r._id) end
  local answer = Q.assign(u, r, w, w.idle)
  Q.put(u, r, 'given', '1')
  Q.hint(u, w.instance, as_hint(answer))
end

-- The worker knows of a job that it was given.
function Q.noticed(u, r)
  if r.given then Q.put(u, r, 'given', nil) end
end

-- Whether an idle worker has not noticed a job that it was given: it is to claim once more.
function Q.has_unnoticed(u, w)
  if w.status ~= 'idle' or not w.ahead then return false end
  for _, job in ipairs(call('ZRANGE', u.P .. 'held:' .. w.instance, '0', '9')) do
    local r = Q.job(u, job)
    if r and r.given and r.phase == 'ahead' then return true end
  end
  return false
end

-- Lets the jobs go on that a worker was given and has not noticed for some heartbeats: its process hangs.
function Q.release_unnoticed(u, instance)
  local before = '(' .. Q.int(u.now - math.floor(u.lease / 4))
  for _, job in ipairs(call('ZRANGEBYSCORE', u.P .. 'held:' .. instance, '-inf', before, 'LIMIT', '0', '10')) do
    local r = Q.job(u, job)
    if r and r.instance == instance and r.given and r.phase == 'ahead' then Q.released(u, r, 'released') end
  end
end
