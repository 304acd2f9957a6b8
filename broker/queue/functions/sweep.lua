-- emq_sweep: the janitor's round: lapsed leases, due jobs, expiry, deadlines, dependants, retention, aging.
-- Guarantee: bounded by `limit` in each part; any number of brokers may sweep at the same time.
-- Arguments: `limit`.
-- Answer: `ok` `reaped` `due` `expired` `trimmed` `more` (call again soon)
--   `hooks` (1: webhook deliveries are due).
local function sweep(keys, argv)
  local u, a = Q.begin(keys, argv)
  local limit = math.max(1, math.min(1000, tonumber(a.limit or 100) or 100))
  Q.alive(u)
  local few, some = math.ceil(limit / 5), math.ceil(limit / 2)
  local reaped = Q.reap_lapsed(u, few)
  local due = Q.promote_due(u, some)
  local expired, late = Q.expire_waiting(u, some), Q.time_out(u, some)
  local more = Q.cascade(u, some)
  Q.match_more(u, 4)
  Q.unpark_more(u)
  Q.age(u, math.min(limit, 100))
  Q.commit(u)
  local trimmed = Q.trim_finished(u, limit)
  Q.forget_classes(u, 20)
  Q.forget_workers(u, 20)
  Q.prune_tags(u)
  Q.prune_index(u, 20)
  Q.commit(u)
  more = more or reaped == few or due == some or expired == some or late == some or trimmed >= limit
  expired = expired + late
  local hooks = redis.call('ZCOUNT', u.P .. 'outbox', '-inf', u.ms)
  return { 'ok', 'reaped', Q.int(reaped), 'due', Q.int(due), 'expired', Q.int(expired), 'trimmed', Q.int(trimmed),
    'more', more and '1' or '0',
    'hooks', hooks > 0 and '1' or '0' }
end

redis.register_function{ function_name = 'emq_sweep', callback = sweep, flags = { 'allow-oom' } }
