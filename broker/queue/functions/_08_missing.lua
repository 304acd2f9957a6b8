-- Why no live worker can run a class.

local LOOKS = 4000
local MISSING = 13 -- where an answer of a submit has the value of `missing`

-- Which of `atoms` no profile has: each is looked for until one has it.
local function without(u, atoms, profiles)
  for _, profile in ipairs(profiles) do
    if #atoms == 0 then break end
    local left = {}
    for from = 1, #atoms, 5000 do
      local part = call('SMISMEMBER', u.P .. 'p:' .. profile, unpack(atoms, from, math.min(#atoms, from + 4999)))
      for i, has in ipairs(part) do
        if has == 0 then left[#left + 1] = atoms[from + i - 1] end
      end
    end
    atoms = left
  end
  local out = {}
  for _, atom in ipairs(atoms) do out[atom] = true end
  return out
end

local function most_vram(u, profiles)
  local keys, most = {}, 0
  for i, profile in ipairs(profiles) do keys[i] = u.P .. 'pv:' .. profile end
  for _, vram_mb in ipairs(call('MGET', unpack(keys))) do most = math.max(most, tonumber(vram_mb or 0)) end
  return most
end

-- The atoms and VRAM of the first of some classes: as many of them as can be compared with the profiles.
local function needs(u, names, profiles)
  local out, atoms, seen = {}, {}, {}
  for i, name in ipairs(names) do
    local c = call('HMGET', u.P .. 'c:' .. name, 'atoms', 'vram_mb')
    local need = { name = name, atoms = Q.lines(c[1]), vram_mb = tonumber(c[2] or 0) }
    for _, atom in ipairs(need.atoms) do
      if not seen[atom] then atoms[#atoms + 1] = atom end
      seen[atom] = true
    end
    if i > 1 and #atoms * #profiles > LOOKS then return out, atoms end
    out[i] = need
  end
  return out, atoms
end

-- Of the first of some classes (all, unless that is too much) what no live worker has: class → lines of atoms,
-- `v:<MB>`; or `*` (there is no worker), `+` (nobody has all of it).
function Q.missing_of(u, names)
  local out, profiles = {}, Q.live_profiles(u)
  if #profiles == 0 then
    for _, name in ipairs(names) do out[name] = '*' end
    return out
  end
  local wanted, atoms = needs(u, names, profiles)
  local gone, vram_mb = without(u, atoms, profiles), most_vram(u, profiles)
  for _, need in ipairs(wanted) do
    local lines = {}
    for _, atom in ipairs(need.atoms) do
      if gone[atom] then lines[#lines + 1] = atom end
    end
    if need.vram_mb > vram_mb then lines[#lines + 1] = 'v:' .. Q.int(need.vram_mb) end
    out[need.name] = #lines > 0 and table.concat(lines, '\n') or '+'
  end
  return out
end

function Q.missing(u, class)
  return Q.missing_of(u, { class })[class]
end

-- Says in the answers of a submit, by class, what no live worker has; a bulk of many classes leaves some unanswered.
-- `new` says of classes that the call made known whether somebody was found who can run them.
function Q.tell_missing(u, answers, new)
  local first = next(answers)
  if not first or not next(answers, first) and new[first] == nil and Q.still_served(u, first) then return end
  local known, names = {}, {}
  for name in pairs(answers) do
    if new[name] == nil then known[#known + 1] = { name = name } elseif not new[name] then names[#names + 1] = name end
  end
  if #known > 0 then Q.mark_served(u, known) end
  for _, class in ipairs(known) do
    if not class.served then names[#names + 1] = class.name end
  end
  local missing = #names > 0 and Q.missing_of(u, names) or {}
  for name, of_class in pairs(answers) do
    for _, answer in ipairs(of_class) do answer[MISSING] = missing[name] or '' end
  end
end
