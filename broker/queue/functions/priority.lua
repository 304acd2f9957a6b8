-- emq_priority: moves a waiting job to another priority, or before all others of its own.
-- Guarantee: takes its place as if it had been submitted now with that priority.
-- Arguments: `job` `tenant` (empty: any) `priority` or `front 1`.
-- Answer: `ok` `priority` `position`; `not_found`; `conflict` `status` (it no longer waits).
local function priority(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r = Q.job_of(u, a.job, a.tenant)
  if not r then return { 'not_found' } end
  if Q.HOME[r.status] ~= 'w' then return { 'conflict', 'status', r.status } end
  local wanted = tonumber(a.priority or nil)
  if wanted then Q.set_priority(u, r, math.floor(wanted)) end
  if a.front == '1' then Q.to_front(u, r) end
  Q.settle(u)
  local position = Q.position(u, r, 64)
  if position then Q.update(u, r, 'moved', position) end
  Q.commit(u)
  return { 'ok', 'priority', r.priority, 'position', position and Q.int(position) or '' }
end

define{ function_name = 'emq_priority', callback = priority, flags = { 'allow-oom' } }
