#!lua name=floor
-- The fewest atomic steps of a queue that can recover a job: enqueue, claim, complete; and the last two in one call.
local call -- redis.call, which is not there yet while a library is loaded
call = function(...)
  call = redis.call
  return call(...)
end

local function enqueue(keys, argv)
  local P, n = keys[1], 0
  for i = 1, #argv, 2 do
    if call('HSETNX', P .. 'j:' .. argv[i], 'b', argv[i + 1]) == 1 then
      call('ZADD', P .. 'q', call('HINCRBY', P .. 'meta', 'seq', 1), argv[i])
      n = n + 1
    end
  end
  call('LPUSH', P .. 'wake', '1')
  call('LTRIM', P .. 'wake', 0, 0)
  return n
end

local function take(P, until_ms)
  local head = call('ZPOPMIN', P .. 'q')
  if not head[1] then return false end
  local fence = call('HINCRBY', P .. 'j:' .. head[1], 'f', 1)
  call('ZADD', P .. 'leases', until_ms, head[1])
  call('HINCRBY', P .. 'count', 'claimed', 1)
  return { head[1], fence, call('HGET', P .. 'j:' .. head[1], 'b') }
end

local function ended(P, id, fence)
  if call('HGET', P .. 'j:' .. id, 'f') ~= fence then return false end
  call('ZREM', P .. 'leases', id)
  call('UNLINK', P .. 'j:' .. id)
  call('HINCRBY', P .. 'count', 'claimed', -1)
  call('HINCRBY', P .. 'count', 'completed', 1)
  return true
end

redis.register_function('floor_enqueue', enqueue)
redis.register_function('floor_claim', function(keys, argv) return take(keys[1], argv[1]) end)
redis.register_function('floor_complete', function(keys, argv) return ended(keys[1], argv[1], argv[2]) and 1 or 0 end)
redis.register_function('floor_next', function(keys, argv)
  ended(keys[1], argv[1], argv[2])
  return take(keys[1], argv[3])
end)
