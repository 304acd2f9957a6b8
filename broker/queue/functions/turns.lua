-- emq_turns: several `finish` and `executed` in one call, of one worker or of many. All ends come before all claims.
-- Guarantee: each is as it would be alone, in this order; one that is refused leaves the others alone.
-- Arguments: up to 32 ends, each `turn` (`finish`, `executed`) and the arguments of that function, in sections of ends
--   with the same names: `ends` <rows> <shared> <own>, so many pairs that hold for all of them, so many names, and for
--   each end a row: its values of these names.
-- Answer: pairs that hold for all rows that say nothing else, the names of a row's values, then the answers of these
--   functions, and in place of an `ok` with `next` `job` a row: `job`, and its values of these names, or of the first
--   of them; `invalid`.
-- A release before 5 sends pairs, where each `turn` begins an end, and gets a list of answers that are as elsewhere.
local MOST = 32
local CALLS = { finish = Q.finished, executed = Q.executed }

local function number(text)
  return tonumber(string.match(text or '', '^%d+$'))
end

-- Adds the ends of a section to `turns`; answers where the next section begins, nil when this is none.
local function section(argv, at, turns)
  local rows, shared, own = number(argv[at + 1]), number(argv[at + 2]), number(argv[at + 3])
  if argv[at] ~= 'ends' or not (rows and shared and own) then return nil end
  local names, n = at + 3 + 2 * shared, #turns
  local row = names + own
  if n + rows > MOST or row + rows * own > #argv then return nil end
  local common = {}
  for i = at + 4, names, 2 do common[argv[i]] = argv[i + 1] end
  local inherits = { __index = common } -- cheaper than a copy of each pair for each end
  for k = n + 1, n + rows do
    local a = { job = nil, token = nil, claim_token = nil, following = nil }
    for i = 1, own do a[argv[names + i]] = argv[row + i] end
    row = row + own
    turns[k] = setmetatable(a, inherits)
  end
  return row + 1
end

-- The arguments of each turn, from sections; nil for what is none.
local function of_sections(argv)
  local turns, at = {}, 1
  while at and argv[at] do at = section(argv, at, turns) end
  return at and turns
end

-- The same from pairs.
local function of_pairs(argv)
  local turns, a = {}, nil
  for i = 1, #argv, 2 do
    local name, value = argv[i], argv[i + 1]
    if name == 'turn' then
      a = {}
      turns[#turns + 1] = a
    elseif not a then
      return nil
    end
    a[name] = value
  end
  return #turns <= MOST and turns
end

local function are_known(turns)
  for _, a in ipairs(turns) do
    if not CALLS[a.turn or ''] then return false end
  end
  return true
end

-- Notes how many claims of the same worker follow each turn without another's between.
local function count_following(turns)
  local n, worker = 0, nil
  for i = #turns, 1, -1 do
    local a = turns[i]
    if a.worker ~= worker then n, worker = 0, a.worker end
    a.following = n
    if a.claim == '1' then n = n + 1 end
  end
end

local function ends(keys, argv)
  local rows, answers = argv[1] == 'ends', {}
  local turns = (rows and of_sections or of_pairs)(argv)
  if not turns or not are_known(turns) then return { 'invalid', 'argument', 'turn' } end
  local u = Q.open(keys[1], 'ttl_completed_ms', 'max_finishing')
  Q.gather(u)
  count_following(turns)
  for i, a in ipairs(turns) do answers[i] = CALLS[a.turn](u, a) end
  for i, a in ipairs(turns) do
    if answers[i][1] == 'ok' then answers[i] = Q.claim_next(u, a, answers[i], a.following, rows) end
  end
  Q.end_run(u)
  Q.remember_all(u)
  Q.commit(u)
  if not rows then return answers end
  local shared, names = Q.row_head(u)
  return { shared, names, unpack(answers) }
end

define{ function_name = 'emq_turns', callback = ends, flags = { 'allow-oom' } }
