-- emq_turns: several `finish` and `executed` in one call, of one worker or of many. All ends come before all claims.
-- Guarantee: each is as it would be alone, in this order; one that is refused leaves the others alone.
-- Arguments: for each of up to 32 `turn` (`finish`, `executed`), then those of that function.
-- Answer: a list of the answers of these functions; `invalid`.
local MOST = 32

-- The arguments of each turn; nil for what is none.
local function turns_of(argv)
  local turns, a = {}, nil
  for i = 1, #argv, 2 do
    local name, value = argv[i], argv[i + 1]
    if name == 'turn' then
      if value ~= 'finish' and value ~= 'executed' or #turns == MOST then return nil end
      a = {
        turn = nil, job = nil, token = nil, worker = nil, instance = nil, claim = nil, claim_token = nil, result = nil,
        exec_ms = nil, cold = nil, following = nil,
      }
      turns[#turns + 1] = a
    elseif not a then
      return nil
    end
    a[name] = value
  end
  return turns
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
  local turns, answers = turns_of(argv), {}
  if not turns then return { 'invalid', 'argument', 'turn' } end
  local u = Q.open(keys[1], 'ttl_completed_ms', 'max_finishing')
  Q.gather(u)
  count_following(turns)
  for i, a in ipairs(turns) do answers[i] = a.turn == 'finish' and Q.finished(u, a) or Q.executed(u, a) end
  for i, a in ipairs(turns) do
    if answers[i][1] == 'ok' then Q.claim_next(u, a, answers[i], a.following) end
  end
  Q.end_run(u)
  Q.remember_all(u)
  Q.commit(u)
  return answers
end

define{ function_name = 'emq_turns', callback = ends, flags = { 'allow-oom' } }
