-- emq_retry: starts a new round of a job that ended.
-- Guarantee: the attempt goes on counting; what the new round may fail starts anew; a repeated call changes nothing.
-- Arguments: `job` `tenant` (empty: any) `elsewhere` (1: not by the worker that had it last, while another can run it).
-- Answer: `ok` `round`; `not_found`; `conflict` `status`.
local FORGET = {
  'failures', 'crashes', 'handbacks', 'cancel', 'error', 'error_code', 'finished_at', 'claimed_at', 'started_at',
  'executed_at', 'timings', 'worker_id', 'variant', 'avoid', 'expires_at', 'deps', 'due_at', 'stored_progress', 'done',
  'dead_letter', 'crash_log',
}

local function retry(keys, argv)
  local u, a = Q.begin(keys, argv)
  local P = u.P
  local r = Q.job_of(u, a.job, a.tenant)
  if not r then return { 'not_found' } end
  if not Q.TERMINAL[r.status] then
    if r.status == 'pending' and r.reason == 'forced_retry' then return { 'ok', 'round', r.round, 'repeated', '1' } end
    return { 'conflict', 'status', r.status }
  end
  if call('EXISTS', P .. 'b:' .. a.job) == 0 or not Q.class(u, r.class).exists then return { 'not_found' } end
  for _, kind in ipairs({ 'j:', 'b:', 'e:', 'kids:' }) do call('PERSIST', P .. kind .. a.job) end
  call('DEL', P .. 'pr:' .. a.job)
  call('ZREM', P .. 'dead', a.job)
  Q.unindex_end(u, r)
  local last = a.elsewhere == '1' and r.worker_id
  for _, name in ipairs(FORGET) do
    if r[name] then Q.put(u, r, name, nil) end
  end
  if last then Q.avoid(u, r, last) end
  Q.put(u, r, 'uncounted', r.attempt)
  Q.put(u, r, 'round', Q.int(tonumber(r.round or 1) + 1))
  Q.put(u, r, 'reason', 'forced_retry')
  Q.put(u, r, 'score', nil)
  call('SADD', P .. 'tenants', r.tenant)
  Q.move(u, r, 'pending')
  if r.group then Q.group_reopened(u, r) end
  Q.enqueue(u, r, 'forced_retry')
  Q.commit(u)
  return { 'ok', 'round', r.round, 'repeated', '0' }
end

define{ function_name = 'emq_retry', callback = retry }
