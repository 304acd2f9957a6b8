#!lua name=floor_duties
-- The floor with what EMQ promises of every job besides (docs/queue.md, docs/protocol.md), in the fewest steps:
-- a record that outlives the job for its life time; events, logged and (but for the first) published; lists by tenant
-- and state, in order of arrival; a search index by worker; counters of pool and tenant, histograms of waits and runs,
-- a class's average run; the server's clock; the pool's pause; a tenant's limits, cap and share (start-time fair
-- queueing), behind priorities; jobs of a class only for workers that can run it; a submit's answer with position and
-- whether somebody can; a worker's slots, pause and drain; a repeated claim gets the same job, a repeated submit adds
-- none; a lease, and a fence.
-- Left out is what costs a job nothing while nobody uses it (delays, dependencies, groups, webhooks, traces, labels,
-- cancels), and two sorts of order: lanes by tenant, which parked heads need, and kinds of models that are loaded.
local LEVEL, FIRST, COST = 2 ^ 45, 2 ^ 30, 100
local BUCKETS = { 100, 500, 1000, 2500, 5000, 10000, 30000, 60000, 120000, 300000, 600000, 1800000, 3600000, 14400000 }

local call -- redis.call, which is not there yet while a library is loaded
call = function(...)
  call = redis.call
  return call(...)
end

local function int(n) return string.format('%d', n) end

-- The time in ms, and what the pool says.
local function opened(P)
  local t = call('TIME')
  local c = call('HMGET', P .. 'config', 'paused', 'deployment', 'lease_ms')
  return t[1] * 1000 + math.floor(t[2] / 1000), c
end

-- Reads and writes counters, in one call each.
local function count(P, deltas)
  local names, flat = {}, {}
  for name in pairs(deltas) do names[#names + 1] = name end
  local had = call('HMGET', P .. 'count', unpack(names))
  for i, name in ipairs(names) do flat[2 * i - 1], flat[2 * i] = name, int((had[i] or 0) + deltas[name]) end
  call('HSET', P .. 'count', unpack(flat))
end

local function observe(deltas, what, ms)
  local i = 1
  while BUCKETS[i] and ms > BUCKETS[i] do i = i + 1 end
  deltas['h:' .. what .. ':' .. i], deltas['h:' .. what .. ':ms'] = 1, ms
end

-- Logs events and publishes them, those up to `known` excepted: nobody could listen yet.
local function tell(P, id, events, known)
  call('RPUSH', P .. 'e:' .. id, unpack(events))
  for i = known + 1, #events do call('SPUBLISH', P .. 'ev:' .. id, events[i]) end
end

local FIRST_EVENT = '1-0\njob_update\n{"status":"pending"}'

local function enqueue(keys, argv)
  local P, tenant, class, n, answers = keys[1], argv[1], argv[2], (#argv - 2) / 2, {}
  local now = opened(P)
  local limits = call('HMGET', P .. 'tn:' .. tenant, 'weight', 'max_queued')
  local had = call('HMGET', P .. 'count', 'pending', tenant .. ':pending', tenant .. ':bytes', 'submitted_total',
    tenant .. ':submitted_total')
  if limits[2] and (had[2] or 0) + n > tonumber(limits[2]) then return 'queue_full' end
  local arrival, v = call('INCRBY', P .. 'arrivals', n) - n, call('HMGET', P .. 'v', 'V', tenant)
  local start, bytes, first, added = math.max(v[1] or FIRST, v[2] or 0), 0, nil, 0
  local able = call('SISMEMBER', P .. 'ok', class)
  for i = 3, #argv, 2 do
    local id, body = argv[i], argv[i + 1]
    local key, score, at = P .. 'j:' .. id, int(100 * LEVEL + start), int(arrival + i)
    if call('EXISTS', key) == 0 then
      call('HSET', key, 'tenant', tenant, 'class', class, 'status', 'pending', 'arrival', at, 'created_at', int(now),
        'priority', '0', 'score', score, 'events', '1')
      call('SET', P .. 'b:' .. id, body)
      call('ZADD', P .. 'q:' .. class, score, id)
      call('ZADD', P .. 'w:' .. tenant, at, id)
      first, added, bytes = first or score, added + 1, bytes + #body
      start = start + COST / (limits[1] or 1)
      local position = added == 1 and call('ZRANK', P .. 'q:' .. class, id) or answers[added - 1][2] + 1
      answers[added] = { id, position, able }
    end
  end
  if added > 0 then
    call('ZADD', P .. 'i', 'LT', first, class)
    call('HSET', P .. 'v', tenant, int(start))
    call('HSET', P .. 'count', 'pending', int((had[1] or 0) + added), tenant .. ':pending', int((had[2] or 0) + added),
      tenant .. ':bytes', int((had[3] or 0) + bytes), 'submitted_total', int((had[4] or 0) + added),
      tenant .. ':submitted_total', int((had[5] or 0) + added))
    call('LPUSH', P .. 'wake', '1')
    call('LTRIM', P .. 'wake', 0, 0)
  end
  return answers
end

-- Whether a tenant may not run one more.
local function held_back(P, tenant, limits)
  if limits[1] then return true end
  return limits[2] and tonumber(call('HGET', P .. 'count', tenant .. ':claimed') or 0) >= tonumber(limits[2])
end

-- The next job for a worker that has ended `done` jobs in this call.
local function take(P, now, c, worker, token, done, deltas)
  local w = call('HMGET', P .. 'wk:' .. worker, 'slots', 'running', 'paused', 'drain', 'tokens')
  local running = (w[2] or 0) - done
  if c[1] or w[3] or w[4] or running >= tonumber(w[1] or 32) then return false end
  if w[5] and string.find(w[5], token, 1, true) then return { string.match(w[5], token .. ' (%S+)') } end
  local class = call('ZRANGE', P .. 'i', '0', '0')[1]
  if not class or call('SISMEMBER', P .. 'ok', class) == 0 then return false end
  local heads = call('ZRANGE', P .. 'q:' .. class, '0', '1', 'WITHSCORES')
  local id, ms = heads[1], int(now)
  local r = call('HMGET', P .. 'j:' .. id, 'tenant', 'arrival', 'attempt', 'created_at')
  local tenant, attempt = r[1], int((r[3] or 0) + 1)
  local limits = call('HMGET', P .. 'tn:' .. tenant, 'paused', 'max_running', 'rules')
  if held_back(P, tenant, limits) then return false end
  call('ZREM', P .. 'q:' .. class, id)
  if heads[3] then call('ZADD', P .. 'i', heads[4], class) else call('ZREM', P .. 'i', class) end
  local body = call('GET', P .. 'b:' .. id)
  call('HSET', P .. 'j:' .. id, 'status', 'claimed', 'token', token, 'worker_id', worker, 'claimed_at', ms, 'attempt',
    attempt, 'events', '2')
  call('ZADD', P .. 'held:' .. worker, ms, id)
  call('ZREM', P .. 'w:' .. tenant, id)
  call('ZADD', P .. 'a:' .. tenant, r[2], id)
  call('HSET', P .. 'v', 'V', int(heads[2] % LEVEL))
  call('HSET', P .. 'wk:' .. worker, 'running', int(running + 1), 'tokens',
    token .. ' ' .. id .. '\n' .. string.sub(w[5] or '', 1, 207))
  deltas.pending, deltas[tenant .. ':pending'], deltas[tenant .. ':bytes'] = -1, -1, -#body
  deltas.claimed = (deltas.claimed or 0) + 1
  deltas[tenant .. ':claimed'] = (deltas[tenant .. ':claimed'] or 0) + 1
  deltas.attempts_total = 1
  observe(deltas, 'wait', now - r[4])
  tell(P, id, { FIRST_EVENT, '2-0\njob_update\n{"status":"claimed","attempt":' .. attempt .. ',"worker_id":"' .. worker
    .. '"}' }, 1)
  return { id, token, body, attempt, tenant, limits[3] or '', c[3] or '30000' }
end

-- A class's average run: ten runs a second at most are measured.
local function measure(P, now, class, exec_ms)
  local key = P .. 'c:' .. class
  local c = call('HMGET', key, 'runs', 'run', 'measured')
  if c[3] and now - c[3] < 100 then return end
  local run = (c[2] or exec_ms) + 0.2 * (exec_ms - (c[2] or exec_ms))
  call('HSET', key, 'runs', int((c[1] or 0) + 1), 'run', string.format('%.1f', run), 'measured', int(now))
end

local function ended(P, now, id, token, result, deltas)
  local key, ms = P .. 'j:' .. id, int(now)
  local r = call('HMGET', key, 'token', 'tenant', 'status', 'arrival', 'class', 'worker_id')
  if r[1] ~= token or r[3] ~= 'claimed' then return 0 end
  local tenant, worker = r[2], r[6]
  measure(P, now, r[5], 1)
  observe(deltas, 'run', 1)
  call('ZREM', P .. 'held:' .. worker, id)
  call('HSET', key, 'status', 'completed', 'finished_at', ms, 'started_at', ms, 'done', token .. ' completed', 'events',
    '6')
  call('ZREM', P .. 'a:' .. tenant, id)
  call('ZADD', P .. 'f:' .. tenant .. ':completed', r[4], id)
  call('ZADD', P .. 'fin:completed', ms, id)
  call('ZADD', P .. 'x:' .. tenant, '0', 'w:' .. worker .. '\n' .. string.format('%012x:', r[4]) .. id)
  deltas.claimed, deltas[tenant .. ':claimed'] = -1, -1
  deltas.completed, deltas[tenant .. ':completed'] = 1, 1
  deltas.completed_total, deltas[tenant .. ':completed_total'] = 1, 1
  local who = ',"worker_id":"' .. worker .. '"}'
  tell(P, id, {
    '3-0\njob_update\n{"status":"processing"' .. who, '4-0\nupdate_job_progress\n{"progress":100' .. who,
    '5-0\njob_update\n{"status":"completed"' .. who, '6-0\ncomplete_job\n{"result":' .. result .. who,
  }, 0)
  for _, kind in ipairs({ 'j:', 'b:', 'e:' }) do call('PEXPIRE', P .. kind .. id, '86400000') end
  return 1
end

local function claim(keys, argv)
  local now, c = opened(keys[1])
  local deltas = {}
  local job = take(keys[1], now, c, argv[1], argv[2], 0, deltas)
  if job then count(keys[1], deltas) end
  return job
end

local function ended_and_next(keys, argv)
  local P, deltas = keys[1], {}
  local now, c = opened(P)
  local done = ended(P, now, argv[3], argv[4], '{}', deltas)
  local job = take(P, now, c, argv[1], argv[2], done, deltas)
  if done > 0 and not job then call('HINCRBY', P .. 'wk:' .. argv[1], 'running', '-1') end
  if done > 0 or job then count(P, deltas) end
  return job
end

-- What is there before any job: a worker, and a class that it can run.
local function register(keys, argv)
  call('HSET', keys[1] .. 'wk:' .. argv[1], 'slots', argv[2])
  call('SADD', keys[1] .. 'ok', argv[3])
end

redis.register_function('floor_duties_register', register)
redis.register_function('floor_duties_enqueue', enqueue)
redis.register_function('floor_duties_claim', claim)
redis.register_function('floor_duties_next', ended_and_next)
