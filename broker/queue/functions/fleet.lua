-- emq_fleet: what the live workers can do, one row a profile.
-- Guarantee: reads only; of 200 profiles, those with most workers; stops after 500 KB of JSON.
-- Arguments: `known` (lines: profiles whose JSON the caller has; an id stands for one content).
-- Answer: `ok` `more` (1: some are left out; call again and say that these are known) then `profile` <nested `ok` with
-- `profile` `workers` `json` (empty: known) `without` (atoms that it lacks)>.
local PROFILES, BYTES = 200, 500000

local function fleet(keys, argv)
  local u, a = Q.begin(keys, argv)
  local live, out = call('ZREVRANGE', u.P .. 'profiles', 0, PROFILES - 1, 'WITHSCORES'), { 'ok', 'more', '0' }
  local known, bytes = {}, 0
  for _, profile in ipairs(Q.lines(a.known)) do known[profile] = true end
  for i = 1, #live, 2 do
    local profile, json = live[i], ''
    if not known[profile] and bytes >= BYTES then
      out[3] = '1'
    else
      if not known[profile] then json = call('GET', u.P .. 'pd:' .. profile) or '{}' end
      bytes = bytes + #json
      out[#out + 1] = 'profile'
      out[#out + 1] = { 'ok', 'profile', profile, 'workers', live[i + 1], 'json', json,
        'without', call('GET', u.P .. 'pw:' .. profile) or '' }
    end
  end
  return out
end

define{ function_name = 'emq_fleet', callback = fleet, flags = { 'no-writes' } }
