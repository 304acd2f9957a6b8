-- Token buckets on Redis' clock: one for all replicas.

-- What a bucket holds now. It fills by `rate` tokens a second up to `burst`; one that nobody has used is full.
function Q.bucket(u, key, rate, burst)
  local got = call('HMGET', key, 'tokens', 'at', 'until', 'locks')
  local tokens = tonumber(got[1] or burst)
  if got[2] then tokens = math.min(burst, tokens + (u.now - got[2]) * rate / 1000) end
  return {
    key = key, rate = rate, burst = burst, tokens = tokens, locked = tonumber(got[3] or 0),
    locks = tonumber(got[4] or 0),
  }
end

-- How long until a bucket has `cost` tokens, in ms.
function Q.bucket_wait(b, cost)
  return math.ceil((math.min(cost, b.burst) - b.tokens) * 1000 / b.rate)
end

-- Takes tokens. A cost above the burst leaves a debt.
function Q.spend(u, b, cost)
  b.tokens = b.tokens - cost
  call('HSET', b.key, 'tokens', string.format('%.6f', b.tokens), 'at', u.ms)
  call('PEXPIRE', b.key, Q.int(math.ceil((b.burst - b.tokens) * 1000 / b.rate) + 1000))
end
