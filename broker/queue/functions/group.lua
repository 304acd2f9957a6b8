-- emq_group: a group's figures.
-- Guarantee: reads only.
-- Arguments: `tenant` `group`.
-- Answer: `ok` with a count for each status, `jobs`, `open`, `ended` (how often the last open job has ended),
-- `created_at`; `not_found`.
local STATUSES = { 'scheduled', 'blocked', 'pending', 'claimed', 'processing', 'completed', 'failed', 'cancelled' }

local function group(keys, argv)
  local u, a = Q.begin(keys, argv)
  local g = Q.pairs_of(call('HGETALL', Q.group_key(u, a.tenant or '', a.group or '')))
  if not g.jobs then return { 'not_found' } end
  local out = { 'ok', 'jobs', g.jobs, 'open', g.open or '0', 'ended', g.ended or '0', 'created_at', g.created_at or '' }
  for _, status in ipairs(STATUSES) do
    out[#out + 1] = status
    out[#out + 1] = g[status] or '0'
  end
  return out
end

define{ function_name = 'emq_group', callback = group, flags = { 'no-writes' } }
