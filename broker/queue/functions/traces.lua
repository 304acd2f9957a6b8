-- emq_traces: takes what spans are to be made of.
-- Guarantee: two never take the same; what is taken is gone, so a broker that dies with it loses it.
-- Arguments: `limit`.
-- Answer: `ok` `entries` (lines of JSON).
local function traces(keys, argv)
  local u, a = Q.begin(keys, argv)
  local key, limit = u.P .. 'traces', math.max(1, math.min(100, tonumber(a.limit or 20) or 20))
  local entries = call('LRANGE', key, 0, limit - 1)
  if #entries > 0 then call('LTRIM', key, #entries, -1) end
  return { 'ok', 'entries', table.concat(entries, '\n') }
end

define{ function_name = 'emq_traces', callback = traces, flags = { 'allow-oom' } }
