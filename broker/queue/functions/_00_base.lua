-- What every function shares: the unit of work of one call, arguments, numbers and JSON text.
--
-- A call gathers its changes of records, counters, logs, virtual time and some sets in a unit of work `u` and writes
-- them once, in `Q.commit`; other sets are written as it goes. All checks of a function come before its first write.

Q.VERSION = 5
Q.LEVEL = 2 ^ 45       -- width of a priority level in a score
Q.FIRST_TAG = 2 ^ 30   -- room below it for "to the front"
Q.UNIT_MS = 10         -- one unit of a tag is 10 ms of expected GPU time
Q.RUN_MS = 1000        -- a run, before anything is measured
Q.LOAD_MS = 15000      -- a model load, before anything is measured
Q.LEASE_MS = 30000     -- a lease, unless the pool says otherwise
Q.LOG_MAX = 400        -- events kept of one job

local FEW, LARGE = 1000, 1000 ^ 3
local SMALL, LAST = {}, {} -- texts of the numbers below a thousand, and as the last three digits of larger ones
for n = 0, FEW - 1 do SMALL[n], LAST[n] = n .. '', (n < 10 and '00' or n < 100 and '0' or '') .. n end

-- A whole number as text. Scores and times go to Redis as text: `%d` is exact to 2^53 and cheaper than a double; joined
-- from parts, most counters are cheaper still.
function Q.int(n)
  local text = SMALL[n]
  if text then return text end
  local last = n % FEW
  local tail = LAST[last]
  if not tail or n < 0 or n >= LARGE then return string.format('%d', n) end
  local rest = (n - last) / FEW
  text = SMALL[rest]
  if text then return text .. tail end
  last = rest % FEW
  return SMALL[(rest - last) / FEW] .. LAST[last] .. tail
end

-- Most numbers of records are small and change by one: their texts are looked up, since text is slow to calculate with.
local MORE, LESS = {}, {}
for n = 0, 256 do MORE[n .. ''], LESS[n + 1 .. ''] = n + 1 .. '', n > 0 and n .. '' or nil end

-- The text of a number (nil: 0) with one more; nil when that is 0.
function Q.more(text)
  local more = MORE[text or '0']
  if more then return more end
  local n = text + 1
  return n ~= 0 and Q.int(n) or nil
end

-- The same with one less.
function Q.less(text)
  local less = LESS[text]
  if less or text == '1' then return less end
  return Q.int((text or 0) - 1)
end

local JSON, kept, MANY = {}, 0, 512 -- of short texts, most of which come again: ids of workers, reasons, codes

local function quoted(text)
  local json = string.find(text, '[%c"\\\127]') and cjson.encode(text) or '"' .. text .. '"'
  if #text > 64 then return json end
  if kept == MANY then JSON, kept = {}, 0 end
  JSON[text], kept = json, kept + 1
  return json
end

-- Text as a JSON string; nil is null.
function Q.json(text)
  if not text then return 'null' end
  return JSON[text] or quoted(text)
end

-- The lines of a text; an empty text has none.
function Q.lines(text)
  local out = {}
  if text then
    for line in string.gmatch(text, '[^\n]+') do out[#out + 1] = line end
  end
  return out
end

function Q.pairs_of(flat)
  local out = {}
  for i = 1, #flat, 2 do out[flat[i]] = flat[i + 1] end
  return out
end

-- The time in ms. A pool with `test_clock` in its config lives at that time instead.
function Q.now_ms(test_clock)
  if test_clock then return tonumber(test_clock) end
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local DEFAULTS = {
  affinity_max_wait_ms = 60000, ttl_completed_ms = 86400000, ttl_failed_ms = 604800000, ttl_cancelled_ms = 86400000,
  max_finished = 1000000, max_queued = 1000000, max_finishing = 4, max_crashes = 3, max_handbacks = 5,
  backoff_ms = 2000, idem_ttl_ms = 86400000, hang_ms = 600000, stall_ms = 600000, aging_ms = 0, avoid_ms = 600000,
}

-- A unit of work for the pool with prefix P. Numbers of the config that this call needs for sure may be named: they are
-- read along.
function Q.open(P, ...)
  local c = call('HMGET', P .. 'config', 'deployment', 'lease_ms', 'test_clock', 'paused', 'seen', 'grace',
    'tenant_running', 'rules', 'input_urls', 'watched', ...)
  local now = Q.now_ms(c[3])
  local u = {
    P = P, now = now, ms = Q.int(now), deployment = c[1] or '', lease = tonumber(c[2] or Q.LEASE_MS),
    paused = c[4] == '1', seen = tonumber(c[5] or 0), grace = tonumber(c[6] or 0),
    tenant_running = tonumber(c[7] or 0), rules = c[8] or '', input_urls = c[9] or 'public', watched = c[10],
    matches = 0, config = { a = nil, b = nil },
    -- A table grows by doubling, and is hashed anew each time: those that fill for sure begin at their size.
    jobs = { a = nil, b = nil }, workers = { a = nil }, classes = { a = nil }, tenants = { a = nil },
    levels = { a = nil }, sets = false, touched = { nil, nil, nil },
    told = { nil, nil }, counts = {
      pending = nil, claimed = nil, processing = nil, completed = nil, completed_total = nil, attempts_total = nil,
      submitted_total = nil, a = nil, b = nil,
    }, lane_order = false, lanes = false, wakes = false, lives = false, had = false, run = false,
  }
  for i = 1, select('#', ...) do
    local name = select(i, ...)
    u.config[name] = tonumber(c[10 + i] or DEFAULTS[name])
  end
  return u
end

-- The name/value arguments of a call.
function Q.arguments(argv)
  local a = {
    job = nil, token = nil, worker = nil, instance = nil, claim = nil, claim_token = nil, result = nil, exec_ms = nil,
    cold = nil,
  }
  for i = 1, #argv, 2 do a[argv[i]] = argv[i + 1] end
  return a
end

-- Opens a unit of work and reads the name/value arguments.
function Q.begin(keys, argv, ...)
  return Q.open(keys[1], ...), Q.arguments(argv)
end

-- A number of the config that only some calls need.
function Q.setting(u, name)
  local value = u.config[name]
  if value == nil then
    value = tonumber(call('HGET', u.P .. 'config', name) or DEFAULTS[name])
    u.config[name] = value
  end
  return value
end
