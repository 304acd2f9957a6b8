#!lua name=floor_duties
-- The floor with what EMQ promises besides: a record that outlives the job for its life time, a log of events, each of
-- them published, the jobs of a tenant by state and arrival, counters, a lease and a fence, retention by age. One order
-- for all, no classes, no fairness, no workers: the fewest steps that could keep those promises.
local function call(...) return redis.call(...) end

local function told(P, id, ...)
  call('RPUSH', P .. 'e:' .. id, ...)
  for _, event in ipairs({ ... }) do call('SPUBLISH', P .. 'ev:' .. id, event) end
end

local function enqueue(keys, argv)
  local P, now, tenant, n = keys[1], argv[1], argv[2], 0
  local first = call('HINCRBY', P .. 'count', 'arrivals', (#argv - 2) / 2) - (#argv - 2) / 2
  for i = 3, #argv, 2 do
    local id, arrival = argv[i], string.format('%d', first + i)
    local key = P .. 'j:' .. id
    if call('EXISTS', key) == 0 then
      call('HSET', key, 'tenant', tenant, 'status', 'pending', 'arrival', arrival, 'created_at', now)
      call('SET', P .. 'b:' .. id, argv[i + 1])
      call('ZADD', P .. 'q', arrival, id)
      call('ZADD', P .. 'w:' .. tenant, arrival, id)
      told(P, id, '1-0\njob_update\n{"status":"pending"}')
      n = n + 1
    end
  end
  call('HINCRBY', P .. 'count', 'pending', n)
  call('HINCRBY', P .. 'count', tenant .. ':pending', n)
  call('LPUSH', P .. 'wake', '1')
  call('LTRIM', P .. 'wake', 0, 0)
  return n
end

local function take(P, now, until_ms, token)
  local head = call('ZPOPMIN', P .. 'q')
  local id = head[1]
  if not id then return false end
  local key = P .. 'j:' .. id
  local tenant = call('HGET', key, 'tenant')
  local attempt = call('HINCRBY', key, 'attempt', 1)
  call('HSET', key, 'status', 'claimed', 'token', token, 'claimed_at', now)
  call('ZADD', P .. 'leases', until_ms, id)
  call('ZREM', P .. 'w:' .. tenant, id)
  call('ZADD', P .. 'a:' .. tenant, head[2], id)
  call('HINCRBY', P .. 'count', 'pending', -1)
  call('HINCRBY', P .. 'count', tenant .. ':pending', -1)
  call('HINCRBY', P .. 'count', tenant .. ':claimed', 1)
  told(P, id, '2-0\njob_update\n{"status":"claimed","attempt":' .. attempt .. '}')
  return { id, token, call('GET', P .. 'b:' .. id) }
end

local function ended(P, now, id, token, result)
  local key = P .. 'j:' .. id
  local r = call('HMGET', key, 'token', 'tenant', 'status', 'arrival')
  if r[1] ~= token or r[3] ~= 'claimed' then return false end
  local tenant = r[2]
  call('ZREM', P .. 'leases', id)
  call('HSET', key, 'status', 'completed', 'finished_at', now)
  call('ZREM', P .. 'a:' .. tenant, id)
  call('ZADD', P .. 'f:' .. tenant, r[4], id)
  call('ZADD', P .. 'finished', now, id)
  call('HINCRBY', P .. 'count', tenant .. ':claimed', -1)
  call('HINCRBY', P .. 'count', 'completed', 1)
  call('HINCRBY', P .. 'count', tenant .. ':completed', 1)
  told(P, id, '3-0\njob_update\n{"status":"completed"}', '4-0\ncomplete_job\n{"result":' .. result .. '}')
  call('PEXPIRE', key, '86400000')
  call('PEXPIRE', P .. 'b:' .. id, '86400000')
  call('PEXPIRE', P .. 'e:' .. id, '86400000')
  return true
end

redis.register_function('floor_duties_enqueue', enqueue)
redis.register_function('floor_duties_claim', function(keys, argv) return take(keys[1], argv[1], argv[2], argv[3]) end)
redis.register_function('floor_duties_next', function(keys, argv)
  ended(keys[1], argv[1], argv[4], argv[5], '{}')
  return take(keys[1], argv[1], argv[2], argv[3])
end)
