-- The tokens of a worker's last claims, newest first, as lines `<token> <job>`: a repeated claim gets the same job.

-- Keeps a claim, and at least 3 before it: a worker has one claim under way, and one ahead.
function Q.remember(u, w, token, job)
  local line = token .. ' ' .. job .. '\n'
  if u.sets then
    local claims = w._claims
    if not claims then
      claims = {}
      w._claims = claims
    end
    claims[#claims + 1], claims[token] = line, job
    return
  end
  local kept = line .. (w.tokens or '')
  if #kept > 8 * #line then kept = string.match(string.sub(kept, 1, 5 * #line), '^(.*\n)') end
  Q.put(u, w, 'tokens', kept)
end

-- Keeps the claims of a call with many: all of them, and some before.
function Q.remember_all(u)
  for _, w in pairs(u.workers) do
    if w._claims then
      local lines = table.concat(w._claims)
      local kept = lines .. (w.tokens or '')
      if #kept > 2 * #lines + 1000 then kept = string.match(string.sub(kept, 1, #lines + 500), '^(.*\n)') end
      w._claims = nil
      Q.put(u, w, 'tokens', kept)
    end
  end
end

-- The job that an earlier claim with this token got.
function Q.claimed_before(w, token)
  local tokens, claims = w.tokens, w._claims
  if claims and claims[token] then return claims[token] end
  if not tokens or not string.find(tokens, token, 1, true) then return nil end
  local lines = '\n' .. tokens
  local at = string.find(lines, '\n' .. token .. ' ', 1, true)
  return at and string.match(lines, '^[^\n]+', at + #token + 2)
end
