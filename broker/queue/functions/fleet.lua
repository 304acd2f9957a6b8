-- emq_fleet: what the live workers can do, one row a profile.
-- Guarantee: reads only.
-- Arguments: none.
-- Answer: `ok` then `profile` <nested `ok` with `profile` `workers` `json` `without` (atoms that it lacks)>.
local function fleet(keys, argv)
  local u = Q.begin(keys, argv)
  local live, out = redis.call('ZRANGE', u.P .. 'profiles', 0, 199, 'WITHSCORES'), { 'ok' }
  for i = 1, #live, 2 do
    out[#out + 1] = 'profile'
    out[#out + 1] = {
      'ok', 'profile', live[i], 'workers', live[i + 1], 'json', redis.call('GET', u.P .. 'pd:' .. live[i]) or '{}',
      'without', redis.call('GET', u.P .. 'pw:' .. live[i]) or '',
    }
  end
  return out
end

redis.register_function{ function_name = 'emq_fleet', callback = fleet, flags = { 'no-writes' } }
