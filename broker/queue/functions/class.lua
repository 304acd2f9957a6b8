-- emq_class: what is known of a class: run times, and who can run it.
-- Guarantee: reads only.
-- Arguments: `class`.
-- Answer: `ok` `run_ms` `cold_ms` (averages; empty: unmeasured) `runs` `ring` (the last run times, ms, 8 digits each)
-- `workers` (live ones that can run it) `missing` (see emq_submit); `not_found`.
local function class(keys, argv)
  local u, a = Q.begin(keys, argv)
  local name = a.class or ''
  local c = call('HMGET', u.P .. 'c:' .. name, 'run', 'cold', 'runs', 'ring', 'vram_mb')
  if not c[5] then return { 'not_found' } end
  local live, workers = call('ZRANGE', u.P .. 'profiles', 0, 199, 'WITHSCORES'), 0
  for i = 1, #live, 2 do
    if call('SISMEMBER', u.P .. 'ok:' .. live[i], name) == 1 then workers = workers + live[i + 1] end
  end
  return { 'ok', 'run_ms', c[1] or '', 'cold_ms', c[2] or '', 'runs', c[3] or '0', 'ring', c[4] or '',
    'workers', Q.int(workers), 'missing', workers > 0 and '' or Q.missing(u, name) }
end

define{ function_name = 'emq_class', callback = class, flags = { 'no-writes' } }
