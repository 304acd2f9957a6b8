-- emq_fleet: what the live workers can do, one row a profile.
-- Guarantee: reads only.
-- Arguments: `known` (lines: profiles whose JSON the caller has; an id stands for one content).
-- Answer: `ok` then `profile` <nested `ok` with `profile` `workers` `json` (empty: known) `without` (atoms that it
-- lacks)>.
local function fleet(keys, argv)
  local u, a = Q.begin(keys, argv)
  local live, out, known = redis.call('ZRANGE', u.P .. 'profiles', 0, 199, 'WITHSCORES'), { 'ok' }, {}
  for _, profile in ipairs(Q.lines(a.known)) do known[profile] = true end
  for i = 1, #live, 2 do
    out[#out + 1] = 'profile'
    out[#out + 1] = {
      'ok', 'profile', live[i], 'workers', live[i + 1],
      'json', known[live[i]] and '' or redis.call('GET', u.P .. 'pd:' .. live[i]) or '{}',
      'without', redis.call('GET', u.P .. 'pw:' .. live[i]) or '',
    }
  end
  return out
end

redis.register_function{ function_name = 'emq_fleet', callback = fleet, flags = { 'no-writes' } }
