-- emq_payload: what was submitted.
-- Guarantee: reads only; the bytes are those that were submitted.
-- Arguments: `job` `tenant` (empty: any).
-- Answer: `ok` `payload` `spec`; `not_found`.
local function payload(keys, argv)
  local u, a = Q.begin(keys, argv)
  local r = Q.job_of(u, a.job, a.tenant)
  local both = r and call('GET', u.P .. 'b:' .. a.job)
  if not both then return { 'not_found' } end
  local at = tonumber(r.spec_len or 0)
  return { 'ok', 'payload', string.sub(both, at + 1), 'spec', string.sub(both, 1, at) }
end

define{ function_name = 'emq_payload', callback = payload, flags = { 'no-writes' } }
