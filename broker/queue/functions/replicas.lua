-- emq_replicas: where the pool's brokers reach each other.
-- Guarantee: reads only.
-- Arguments: none.
-- Answer: `ok` `replicas` (URLs of brokers that were there within the last 15 s, by line).
local function replicas(keys, argv)
  local u = Q.begin(keys, argv)
  local live = call('ZRANGEBYSCORE', u.P .. 'replicas', u.ms, '+inf')
  return { 'ok', 'replicas', table.concat(live, '\n') }
end

define{ function_name = 'emq_replicas', callback = replicas, flags = { 'no-writes' } }
