-- emq_ranges: what values the inputs of a profile's node classes take, as its workers told it.
-- Guarantee: reads only.
-- Arguments: `profile`.
-- Answer: `ok` `ranges` (opaque; empty: not told).
local function ranges(keys, argv)
  local u, a = Q.begin(keys, argv)
  return { 'ok', 'ranges', call('GET', u.P .. 'px:' .. (a.profile or '')) or '' }
end

define{ function_name = 'emq_ranges', callback = ranges, flags = { 'no-writes' } }
