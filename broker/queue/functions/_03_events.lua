-- A job's events: one logged line a change of state, progress on the wire only.

-- The first event of a job that was not refused at once, from the record's `first`: most jobs wait with no other, so it
-- is put in the log with the next one. Nobody could listen to a job before it was there, so it is not published.
local function first_event(first)
  local status, position = string.match(first, '^(%S+) (%S+)$')
  return '1-0\njob_update\n{"status":"' .. status .. '","attempt":0,"worker_id":null,"position":' .. position
    .. ',"reason":null}'
end

-- Publishes an event that is not logged.
local function publish(u, r, message)
  local wire = r._wire
  if wire then
    wire[#wire + 1] = message
  else
    r._wire = { message }
    u.told[#u.told + 1] = r
  end
end

-- The list that takes a job's next logged event, the place in it, and n, the job's counter + 1, as text.
local function next_event(u, r)
  local log, n = r._log, Q.more(r.events)
  if log then
    r.events = n
    return log, #log + 1, n
  end
  log = { nil, nil, nil, nil } -- room for what an end logs
  r._log = log
  u.told[#u.told + 1] = r
  if r.first and n == '2' then r._first = first_event(r.first) end
  Q.touch(u, r)
  r.events = n
  return log, 1, n
end

-- Logs an event.
function Q.log(u, r, kind, data)
  local log, at, n = next_event(u, r)
  log[at] = n .. '-0\n' .. kind .. '\n' .. data
end

-- Publishes an event that is not logged: n is the current counter, p the worker's counter within its claim.
function Q.publish(u, r, p, kind, data)
  publish(u, r, (r.events or '0') .. '-' .. p .. '\n' .. kind .. '\n' .. data)
end

-- Logs `job_update` with the record's present state. It is joined in one go, since each text in between is hashed.
function Q.update(u, r, reason, position)
  local log, at, n = next_event(u, r)
  log[at] = n .. '-0\njob_update\n{"status":"' .. r.status .. '","attempt":' .. (r.attempt or '0') .. ',"worker_id":'
    .. Q.json(r.worker_id) .. ',"position":' .. (position and Q.int(position) or 'null') .. ',"reason":'
    .. (reason and Q.json(reason) or 'null') .. '}'
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

-- The last progress of a round begins so.
local FULL = '{"progress":100,"node":null,"nodes_done":null,"nodes_total":null,"eta_s":0,"worker_id":'

-- The data of the last progress of a round.
function Q.full_progress(r)
  return FULL .. Q.json(r.worker_id) .. ',"attempt":' .. (r.attempt or '0') .. ',"message":null}'
end

-- Logs it.
function Q.log_full_progress(u, r)
  local log, at, n = next_event(u, r)
  log[at] = n .. '-0\nupdate_job_progress\n' .. FULL .. Q.json(r.worker_id) .. ',"attempt":' .. (r.attempt or '0')
    .. ',"message":null}'
end

-- Logs `complete_job`; `result` is JSON.
function Q.log_completion(u, r, result)
  local log, at, n = next_event(u, r)
  log[at] = n .. '-0\ncomplete_job\n{"status":"completed","worker_id":' .. Q.json(r.worker_id) .. ',"attempt":'
    .. r.attempt .. ',"result":' .. result .. '}'
end

-- Whether somebody watches a job's previews: 0, 1, or how many pixels are wished for. `until_ms` (of the config) is how
-- long somebody watches any job.
function Q.watched(P, job, until_ms, now)
  if now > tonumber(until_ms or 0) then return '0' end
  local seen = call('MGET', P .. 'watch:' .. job, P .. 'watchpx:' .. job)
  return not seen[1] and '0' or seen[2] or '1'
end
