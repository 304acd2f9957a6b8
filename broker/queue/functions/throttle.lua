-- emq_throttle: takes from a token bucket that all brokers share.
-- Guarantee: never more than `burst` at once and `rate` a second, whichever replica asks.
-- Arguments: `name` `rate` (tokens a second) `burst` `cost` (default 1; what is above `burst` becomes a debt);
-- with `lock_ms` whoever finds it empty is locked out that long, twice as long each time, up to `max_lock_ms`.
-- Answer: `ok`; `wait` `retry_after_ms`; `invalid` `argument`.
local function lock(u, b, a)
  local ms = math.min(tonumber(a.lock_ms) * 2 ^ math.min(b.locks, 20), tonumber(a.max_lock_ms or a.lock_ms))
  call('HSET', b.key, 'tokens', string.format('%.6f', b.tokens), 'at', u.ms, 'until', Q.int(u.now + ms), 'locks',
    Q.int(b.locks + 1))
  call('PEXPIRE', b.key, Q.int(ms + tonumber(a.max_lock_ms or a.lock_ms)))
  return ms
end

local function throttle(keys, argv)
  local u, a = Q.begin(keys, argv)
  local rate, burst, cost = tonumber(a.rate or nil), tonumber(a.burst or nil), tonumber(a.cost or 1)
  if not a.name or not rate or not burst or rate <= 0 or burst <= 0 then
    return { 'invalid', 'argument', 'name rate burst' }
  end
  local b = Q.bucket(u, u.P .. 'tb:' .. a.name, rate, burst)
  if b.locked > u.now then return { 'wait', 'retry_after_ms', Q.int(b.locked - u.now) } end
  if b.tokens < math.min(cost, burst) then
    local ms = a.lock_ms and lock(u, b, a) or Q.bucket_wait(b, cost)
    return { 'wait', 'retry_after_ms', Q.int(ms) }
  end
  Q.spend(u, b, cost)
  if a.lock_ms and b.locks > 0 then call('PEXPIRE', b.key, Q.int(tonumber(a.max_lock_ms or a.lock_ms))) end
  return { 'ok' }
end

define{ function_name = 'emq_throttle', callback = throttle, flags = { 'allow-oom' } }
