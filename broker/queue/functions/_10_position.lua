-- How many jobs come before one, in claim order within its class.

-- A waiting job's position (1: next), whether it is exact, and then how many other lanes come before it; nil when it is
-- in no lane. At most `limit` other lanes are counted (its own is one more), the rest is estimated from them.
function Q.position(u, r, limit)
  if r.status ~= 'pending' then return nil end
  local class, P = Q.lane_class(r), u.P
  local lane = Q.lane_key(u, class, r.tenant)
  Q.write_set(u, lane)
  local own = call('ZRANK', lane, Q.member(r))
  if not own then return nil end
  -- One that this call added, behind others, has left the lane's head as it was.
  local added = own > 0 and u.lanes and u.lanes[lane]
  if added and added[4] == r then added[3] = math.huge end
  local before = call('ZRANGEBYSCORE', P .. 'h:' .. class, '-inf', r.score, 'LIMIT', '0', limit + 2)
  local counted, others = 0, 0
  for i = 1, math.min(#before, limit + 1) do
    local tenant = before[i]
    if tenant ~= r.tenant then
      local to = tenant < r.tenant and r.score or '(' .. r.score
      local other = Q.lane_key(u, class, tenant)
      Q.write_set(u, other)
      others = others + call('ZCOUNT', other, '-inf', to)
      counted = counted + 1
    end
  end
  -- Lanes whose head has the job's own score come in the order of their tenants: those after its own do not count.
  local last = before[limit + 1]
  local rest = #before > limit + 1 and (last < r.tenant
    or tonumber(call('ZSCORE', P .. 'h:' .. class, last)) ~= tonumber(r.score))
  if not rest then return own + 1 + others, true, counted end
  local lanes = call('ZCOUNT', P .. 'h:' .. class, '-inf', r.score)
  return own + 1 + math.floor(others * lanes / math.max(1, counted)), false
end
