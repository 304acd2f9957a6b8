-- emq_configure: writes the settings that the functions read, and says that a broker is there.
-- Guarantee: a new pool gets its deployment id here, once; it never changes afterwards.
-- Arguments: settings (see docs/queue.md), `broker_url` (for workers), `replica_url` (for other brokers), `deployment`
-- (a candidate), `secret_key_id` (the secret that this broker signs with), `secrets` (lines: those that it knows).
-- Answer: `ok` `deployment` `secret_key_id` (ours, unless a live broker signs with one that we do not know).
local SETTINGS = {
  'lease_ms', 'affinity_max_wait_ms', 'ttl_completed_ms', 'ttl_failed_ms', 'ttl_cancelled_ms', 'max_finished',
  'max_queued', 'max_finishing', 'max_crashes', 'max_handbacks', 'backoff_ms', 'idem_ttl_ms', 'hang_ms', 'stall_ms',
  'input_urls', 'aging_ms', 'avoid_ms', 'max_output_bytes', 'tenant_running', 'rules',
}
local BROKER_LIFE_MS = 15000

-- Notes that there is a broker at a URL, and forgets those that have not said so lately.
local function present(u, list, url)
  if not url or url == '' then return end
  call('ZADD', u.P .. list, Q.int(u.now + BROKER_LIFE_MS), url)
  call('ZREMRANGEBYSCORE', u.P .. list, '-inf', '(' .. u.ms)
end

-- A broker may sign with another secret than the pool's brokers when it knows theirs, or none of them lives any more.
local function take_secret(u, meta, a)
  local got = call('HMGET', meta, 'secret_key_id', 'secret_seen')
  local known = not got[1] or u.now - tonumber(got[2] or 0) > BROKER_LIFE_MS
  for _, id in ipairs(Q.lines(a.secrets or a.secret_key_id)) do known = known or id == got[1] end
  if known then call('HSET', meta, 'secret_key_id', a.secret_key_id, 'secret_seen', u.ms) end
end

local function configure(keys, argv)
  local u, a = Q.begin(keys, argv)
  local P = u.P
  local meta = P .. 'meta'
  if call('HSETNX', meta, 'deployment', a.deployment or redis.sha1hex(P .. u.ms)) == 1 then
    call('HSET', meta, 'created_at', u.ms, 'schema', '1')
  end
  if a.secret_key_id then take_secret(u, meta, a) end
  call('HSET', meta, 'library', Q.VERSION)
  local got = call('HMGET', meta, 'deployment', 'secret_key_id')
  local flat = { 'deployment', got[1] }
  for _, name in ipairs(SETTINGS) do
    if a[name] then
      flat[#flat + 1] = name
      flat[#flat + 1] = a[name]
    end
  end
  call('HSET', P .. 'config', unpack(flat))
  present(u, 'brokers', a.broker_url)
  present(u, 'replicas', a.replica_url)
  return { 'ok', 'deployment', got[1], 'secret_key_id', got[2] or '' }
end

define{ function_name = 'emq_configure', callback = configure, flags = { 'allow-oom' } }
