-- Whether a job is what a listing asks for.

-- What is read of a record: two fields, and those of the filters that are given.
local ALWAYS = { 'status', 'created_at' }
local OF_FILTER = {
  worker = { 'worker_id' }, error = { 'error_code' }, model = { 'models', 'attempt', 'class' }, group = { 'group' },
  labels = { 'labels' }, dead = { 'dead_letter' },
}

local function fields_of(a)
  local fields = { unpack(ALWAYS) }
  for filter, names in pairs(OF_FILTER) do
    for _, name in ipairs(a[filter] and names or {}) do fields[#fields + 1] = name end
  end
  return fields
end

local function has_labels(said, labels)
  local found = {}
  for digest in string.gmatch(said or '', '%x%x%x%x%x%x%x%x') do found[digest] = true end
  for digest in string.gmatch(labels, '%x+') do
    if not found[digest] then return false end
  end
  return true
end

-- Most jobs of a listing have one of a few sets of models: each is looked through once.
local function has_model(u, r, model)
  local names = Q.models_of(u, r)
  u.has_model = u.has_model or {}
  local has = u.has_model[names]
  if has == nil then
    has = false
    for _, name in ipairs(Q.lines(names)) do has = has or Q.term('m', name) == Q.term('m', model) end
    u.has_model[names] = has
  end
  return has
end

-- Whether all filters match; `over` when the job and thereby all that follow are too old.
function Q.matches(u, a, id, is_wanted)
  u.fields = u.fields or fields_of(a)
  local got, r = call('HMGET', u.P .. 'j:' .. id, unpack(u.fields)), {}
  for i, name in ipairs(u.fields) do r[name] = got[i] or nil end
  local created = tonumber(r.created_at or 0)
  if not r.status or created > tonumber(a['until'] or math.huge) then return false end
  if created < tonumber(a.since or 0) then return false, true end
  return is_wanted[r.status] and (not a.worker or r.worker_id == a.worker) and (not a.group or r.group == a.group)
    and (not a.error or r.status == 'failed' and r.error_code == a.error) and (a.dead ~= '1' or r.dead_letter == '1')
    and (not a.labels or has_labels(r.labels, a.labels)) and (not a.model or has_model(u, r, a.model))
end
