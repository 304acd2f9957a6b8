-- emq_sweep: the janitor's round: lapsed leases, due jobs, expiry, deadlines, dependants, retention, aging.
-- Guarantee: bounded by `limit` over all parts; each part gets on, whatever the others have; any number of brokers may
-- sweep at the same time.
-- Arguments: `limit` (jobs and instances, at most 20).
-- Answer: `ok` `reaped` `due` `expired` `trimmed` `more` (call again soon)
--   `hooks` (1: webhook deliveries are due).
local MOST, LEAST = 20, 2

-- Does the parts in turn: each as much as those before it left, two at least. Answers what each did, and whether one of
-- them may have more to do.
local function share(parts, limit)
  local done, more = {}, false
  for i, part in ipairs(parts) do
    local mine = math.max(LEAST, math.ceil(limit / part.cost))
    done[i] = part.work(mine)
    more, limit = more or done[i] >= mine, limit - done[i] * part.cost
  end
  return done, more, limit
end

local function sweep(keys, argv)
  local u, a = Q.begin(keys, argv)
  local limit = math.max(1, math.min(MOST, tonumber(a.limit or MOST) or MOST))
  Q.alive(u)
  local did, more, left = share({
    { cost = 4, work = function(n) return Q.reap_lapsed(u, n) end },
    { cost = 1, work = function(n) return Q.promote_due(u, n) end },
    { cost = 1, work = function(n) return Q.expire_waiting(u, n) end },
    { cost = 2, work = function(n) return Q.time_out(u, n) end },
    { cost = 1, work = function(n) return Q.cascade(u, n) and n or 0 end },
    { cost = 1, work = function(n) return Q.age(u, n) end },
  }, limit)
  Q.match_more(u, 4)
  Q.unpark_more(u)
  Q.commit(u)
  local trimmed, finished = Q.trim_finished(u, math.max(LEAST, left))
  Q.forget_classes(u, 20)
  Q.forget_workers(u, 20)
  Q.prune_tags(u)
  Q.prune_index(u, 20)
  Q.commit(u)
  local hooks = call('ZCOUNT', u.P .. 'outbox', '-inf', u.ms)
  return { 'ok', 'reaped', Q.int(did[1]), 'due', Q.int(did[2]), 'expired', Q.int(did[3] + did[4]),
    'trimmed', Q.int(trimmed), 'more', (more or not finished) and '1' or '0', 'hooks', hooks > 0 and '1' or '0' }
end

define{ function_name = 'emq_sweep', callback = sweep, flags = { 'allow-oom' } }
