-- What brokers make spans of, for jobs that were submitted with a trace: one entry a claim, written in the call that
-- ends it, and one for a job that ends without any. Brokers take them away; where none does, they do not pile up.
local KEPT, LIFE_MS = 2000, 3600000

-- `status` is what became of the claim (nil: its worker was lost), `r._why` the code or reason, `r._spans` its worker's
-- word on the steps.
function Q.trace(u, r, status)
  local key = u.P .. 'traces'
  local function number(name) return '"' .. name .. '":' .. (r[name] or 'null') end
  local function text(name, value) return '"' .. name .. '":' .. Q.json(value) end
  call('RPUSH', key, '{' .. table.concat({
    text('job', r._id), text('trace', r.trace), text('tenant', r.tenant), text('job_type', r.job_type or 'comfyui'),
    text('status', status or 'lost'), text('why', r._why), text('worker_id', r.worker_id), text('spans', r._spans),
    number('attempt'), number('round'), number('created_at'), number('ready_at'), number('claimed_at'),
    number('started_at'), number('executed_at'), '"ended_at":' .. u.ms,
  }, ',') .. '}')
  call('LTRIM', key, -KEPT, -1)
  call('PEXPIRE', key, LIFE_MS)
end
