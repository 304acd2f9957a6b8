-- A job's events: one logged line a change of state, progress on the wire only.

local function update_data(status, attempt, worker, position, reason)
  return '{"status":"' .. status .. '","attempt":' .. attempt .. ',"worker_id":' .. worker .. ',"position":' .. position
    .. ',"reason":' .. reason .. '}'
end

-- The first event of a job that was not refused at once, from the record's `first`.
local function first_event(first)
  local status, position = string.match(first, '^(%S+) (%S+)$')
  return '1-0\njob_update\n' .. update_data(status, '0', 'null', position, 'null')
end

-- Tells a new job's first event. Most jobs wait with no other: it is put in the log with the next one.
function Q.tell_first(u, r, position)
  r.events, r.first = '1', r.status .. ' ' .. (position and Q.int(position) or 'null')
  u.out[#u.out + 1] = { r._id, first_event(r.first), false }
end

-- Logs an event: n is the job's counter + 1.
function Q.log(u, r, kind, data)
  if r.events == '1' and r.first then u.out[#u.out + 1] = { r._id, first_event(r.first), true, true } end
  local n = Q.add(u, r, 'events', 1)
  u.out[#u.out + 1] = { r._id, Q.int(n) .. '-0\n' .. kind .. '\n' .. data, true }
  return n
end

-- Publishes an event that is not logged: n is the current counter, p the worker's counter within its claim.
function Q.publish(u, r, p, kind, data)
  u.out[#u.out + 1] = { r._id, (r.events or '0') .. '-' .. p .. '\n' .. kind .. '\n' .. data, false }
end

-- Logs `job_update` with the record's present state.
function Q.update(u, r, reason, position)
  Q.log(u, r, 'job_update', update_data(r.status, r.attempt or '0', Q.json(r.worker_id),
    position and Q.int(position) or 'null', Q.json(reason)))
end

-- Logs `fail_job`; `error` is JSON.
function Q.log_failure(u, r, error, will_retry, dead)
  Q.log(u, r, 'fail_job', '{"error":' .. error .. ',"attempt":' .. (r.attempt or '0') .. ',"worker_id":'
    .. Q.json(r.worker_id) .. ',"will_retry":' .. (will_retry and 'true' or 'false')
    .. (dead and ',"dead_letter":true' or '') .. '}')
end

-- An error as JSON, for those that the queue finds itself.
function Q.error(code, message, details)
  return '{"code":"' .. code .. '","message":' .. Q.json(message) .. ',"node_id":null,"node_type":null,"details":'
    .. (details or '{}') .. '}'
end

-- The data of the last progress of a round.
function Q.full_progress(r)
  return '{"progress":100,"node":null,"nodes_done":null,"nodes_total":null,"eta_s":0,"worker_id":'
    .. Q.json(r.worker_id) .. ',"attempt":' .. (r.attempt or '0') .. ',"message":null}'
end

-- Whether somebody watches a job's previews: 0, 1, or how many pixels are wished for.
function Q.watched(P, job)
  local seen = redis.call('MGET', P .. 'watch:' .. job, P .. 'watchpx:' .. job)
  return not seen[1] and '0' or seen[2] or '1'
end
