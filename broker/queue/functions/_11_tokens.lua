-- The tokens of a worker's last claims, newest first, as lines `<token> <job>`: a repeated claim gets the same job.

local MANY = 1100 -- bytes of a call's claims, which is more than a worker's last few take

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
  w._newest = nil
  Q.touch(u, w)
  w.tokens = kept
end

-- Keeps the claims of a call with many, and about as many before: that of another call may not be answered yet.
function Q.remember_all(u)
  for _, w in pairs(u.workers) do
    local claims = w._claims
    if claims then
      local before = w.tokens or ''
      local cut = string.find(before, '\n', MANY, true)
      claims[#claims + 1] = cut and string.sub(before, 1, cut) or before
      w._claims = nil
      Q.put(u, w, 'tokens', table.concat(claims))
    end
  end
end

-- The job that an earlier claim with this token got.
function Q.claimed_before(w, token)
  local tokens, claims = w.tokens, w._claims
  if claims and claims[token] then return claims[token] end
  if not tokens or #tokens < MANY and not string.find(tokens, token, 1, true) then return nil end
  -- In a long text a line's first byte is found much sooner than a token's, which are everywhere.
  w._newest = w._newest or string.match(tokens, '^%S*')
  local at = w._newest == token and 0 or string.find(tokens, '\n' .. token .. ' ', 1, true)
  return at and string.match(tokens, '^[^\n]+', at + #token + 2)
end
