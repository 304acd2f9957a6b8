-- The search index of a tenant, `x:<tenant>`: members of equal score, `<term>\n<12 hex arrival>:<job>`, so that the
-- jobs of a term lie together in the order of their arrival. Labels of metadata (`l:<8 hex>`) are there from the submit
-- on; the worker (`w:`), error (`e:`), heavy models (`m:`) and dead letters (`d:`) from a job's end.

Q.NAME_MAX = 64 -- longer values would take a record out of its compact form

local CLEAN, cleaned, MANY = {}, 0, 512 -- names, most of which come again

local function clean(text)
  local name = string.gsub(string.sub(text, 1, Q.NAME_MAX), '%c', ' ')
  if #text > Q.NAME_MAX then return name end
  if cleaned == MANY then CLEAN, cleaned = {}, 0 end
  CLEAN[text], cleaned = name, cleaned + 1
  return name
end

-- The terms of a search for a worker, error code or model.
function Q.term(kind, name)
  return kind .. ':' .. (CLEAN[name] or clean(name))
end

local function member(term, r)
  return term .. '\n' .. Q.member(r)
end

local function end_terms(r)
  local terms = { nil, nil }
  if r.worker_id then terms[#terms + 1] = Q.term('w', r.worker_id) end
  if r.status == 'failed' and r.error_code then terms[#terms + 1] = Q.term('e', r.error_code) end
  if r.models then
    for _, name in ipairs(Q.lines(r.models)) do terms[#terms + 1] = Q.term('m', name) end
  end
  if r.dead_letter then terms[#terms + 1] = 'd:' end
  return terms
end

local function label_terms(r)
  local terms = {}
  for digest in string.gmatch(r.labels or '', '%x%x%x%x%x%x%x%x') do terms[#terms + 1] = 'l:' .. digest end
  return terms
end

local function add(u, r, terms)
  local key = #terms > 0 and u.P .. 'x:' .. r.tenant
  for _, term in ipairs(terms) do Q.zadd(u, key, '0', member(term, r)) end
end

local function remove(u, r, terms)
  local key = #terms > 0 and u.P .. 'x:' .. r.tenant
  for _, term in ipairs(terms) do Q.zrem(u, key, member(term, r)) end
end

-- Keeps the names of a kind's models in the record: as many whole ones as fit, the first one cut.
function Q.note_models(u, r, kind)
  if kind == '' or r.models then return end
  local kept = string.sub(kind, 1, Q.NAME_MAX)
  if #kind > Q.NAME_MAX then kept = string.match(kept, '^(.+)\n') or kept end
  Q.put(u, r, 'models', kept)
end

-- A job's heavy models: until its first claim those of its class. A hand-back moves it to another class, which it may
-- share with jobs of other models.
function Q.models_of(u, r)
  if r.models or r.attempt then return r.models or '' end
  return r.class and Q.class(u, r.class).kind or ''
end

function Q.index_labels(u, r)
  add(u, r, label_terms(r))
end

-- A job has ended.
function Q.index_end(u, r)
  Q.note_models(u, r, Q.models_of(u, r))
  add(u, r, end_terms(r))
end

-- A job starts again.
function Q.unindex_end(u, r)
  remove(u, r, end_terms(r))
end

-- A job is forgotten.
function Q.unindex(u, r)
  remove(u, r, end_terms(r))
  remove(u, r, label_terms(r))
end

-- Looks at a few entries somewhere in an index: a record that went before its retention's sweep leaves them behind.
function Q.prune_index(u, limit)
  local P = u.P
  local tenant = call('SRANDMEMBER', P .. 'tenants')
  local key = tenant and P .. 'x:' .. tenant
  local size = key and call('ZCARD', key) or 0
  if size == 0 then return end
  local from = math.floor(u.now / 7) * limit % size
  for _, entry in ipairs(call('ZRANGE', key, Q.int(from), Q.int(from + limit - 1))) do
    local id = string.match(entry, '\n%x+:(.*)$')
    if call('EXISTS', P .. 'j:' .. (id or '')) == 0 then call('ZREM', key, entry) end
  end
end
