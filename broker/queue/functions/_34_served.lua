-- Which waiting classes a live worker can run, for readers that look at many.

local FEW, INDEXED, LOOKS = 30, 500, 4000

-- The live profiles, those with most workers first, read once a call.
function Q.live_profiles(u)
  local live = u.live_profiles
  if not live then
    live = call('ZREVRANGE', u.P .. 'profiles', '0', '99')
    u.live_profiles = live
  end
  return live
end

-- By class, the profile that was last found to run it.
local FOUND, found, MANY = {}, 0, 512

local function note_found(class, profile)
  if FOUND[class] == nil then
    if found == MANY then FOUND, found = {}, 0 end
    found = found + 1
  end
  FOUND[class] = profile
end

-- Whether the profile that ran a class still does: it runs none when no live worker has it.
function Q.still_served(u, class)
  local profile = FOUND[class]
  return profile and call('SISMEMBER', u.P .. 'ok:' .. profile, class) == 1
end

-- Marks those of `classes` that are in the index of heads; answers the rest.
local function mark_indexed(u, classes, profiles)
  if #classes < FEW or call('ZCARD', u.P .. 'i') > INDEXED then return classes end
  local keys, unserved, left = { u.P .. 'i' }, {}, {}
  for i, profile in ipairs(profiles) do keys[i + 1] = u.P .. 'ok:' .. profile end
  for _, name in ipairs(call('ZDIFF', #keys, unpack(keys))) do unserved[name] = true end
  for _, class in ipairs(classes) do
    if class.head then class.served = not unserved[class.name] else left[#left + 1] = class end
  end
  return left
end

-- Marks the classes that a live worker can run: profile by profile, those with most workers first. Answers false when
-- there were too many to compare all: what was not compared counts as one that somebody can run.
function Q.mark_served(u, classes)
  local profiles, looks = Q.live_profiles(u), 0
  local left = mark_indexed(u, classes, profiles)
  for _, profile in ipairs(profiles) do
    if #left == 0 then return true end
    local names, unserved = {}, {}
    for i, class in ipairs(left) do names[i] = class.name end
    for i, fits in ipairs(call('SMISMEMBER', u.P .. 'ok:' .. profile, unpack(names))) do
      left[i].served = fits == 1
      if fits == 1 then note_found(names[i], profile) else unserved[#unserved + 1] = left[i] end
    end
    left, looks = unserved, looks + #names
    if looks > LOOKS then break end
  end
  if looks <= LOOKS then return true end
  for _, class in ipairs(left) do class.served = true end
  return #left == 0
end
