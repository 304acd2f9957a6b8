-- Records as the readers answer them.

local HIDDEN = { token = true, done = true, labels = true, models = true, est = true, first = true }

-- A record's fields as pairs, appended to `out`; with what is kept beside it when `whole`.
function Q.record(u, r, out, whole)
  local P, id = u.P, r._id
  out[#out + 1] = 'job_id'
  out[#out + 1] = id
  for name, value in pairs(r) do
    if string.sub(name, 1, 1) ~= '_' and not HIDDEN[name] then
      out[#out + 1] = name
      out[#out + 1] = value
    end
  end
  local function pair(name, value)
    out[#out + 1] = name
    out[#out + 1] = value
  end
  pair('models', Q.models_of(u, r))
  local spec_len = tonumber(r.spec_len or 0)
  if spec_len > 0 then pair('spec', call('GETRANGE', P .. 'b:' .. id, 0, spec_len - 1)) end
  if r.status == 'completed' then
    pair('progress', Q.full_progress(r))
    if whole then
      -- It is told in the last event; a quote inside of the worker's name is escaped there.
      local last = call('LINDEX', P .. 'e:' .. id, -1)
      pair('result', last and string.match(last, '"result":(.*)}$') or '')
    end
  elseif r.stored_progress then
    local stored = call('GET', P .. 'pr:' .. id)
    local p, data = string.match(stored or '', '^([^\n]+)\n(.*)$')
    if p then
      pair('progress_id', p)
      pair('progress', data)
    end
  end
  return out
end
