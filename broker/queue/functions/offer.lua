-- emq_offer: the job that a worker would get if it claimed now, for a worker that is told of jobs one by one.
-- Guarantee: takes nothing; the worker then counts as woken, or as idle when there is none.
-- Arguments: `worker` `instance`.
-- Answer: `job` `job_id` `job_type` `priority`; `none`; `again`; `paused`; `busy`; `superseded`; `unknown`.

-- The head of the lane that a claim would take from; nil and why there is none. Parks heads as a claim does.
local function best_head(u, w)
  local P = u.P
  Q.settle(u)
  for _ = 1, 16 do
    local class = Q.pick(u, w)
    if not class then
      if not Q.unpark_more(u) then return nil, 'none' end
      Q.settle(u)
    else
      local tenant = call('ZRANGE', P .. 'h:' .. class, 0, 0)[1]
      if not Q.held_back(u, tenant) then
        local head = call('ZRANGE', Q.lane_key(u, class, tenant), 0, 0)[1]
        return head and Q.job(u, string.sub(head, 14)), 'again'
      end
      Q.park(u, class, tenant)
    end
  end
  return nil, 'again'
end

local function offer(keys, argv)
  local u, a = Q.begin(keys, argv)
  local w, refused = Q.caller(u, a.worker, a.instance)
  if not w then return { refused } end
  if u.paused or w.paused or w.drain or w.status == 'draining' or w.status == 'unhealthy' then return { 'paused' } end
  if tonumber(w.running or 0) + tonumber(w.ahead or 0) >= tonumber(w.slots or 1) then return { 'busy' } end
  local r, why = best_head(u, w)
  local answer = { why }
  if r then
    Q.unset_idle(u, w)
    answer = { 'job', 'job_id', r._id, 'job_type', r.job_type or 'comfyui', 'priority', r.priority }
  elseif why == 'none' then
    Q.set_idle(u, w)
  end
  Q.commit(u)
  return answer
end

define{ function_name = 'emq_offer', callback = offer, flags = { 'allow-oom' } }
