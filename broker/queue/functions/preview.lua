-- emq_preview: publishes a preview frame, in parts under 16 KiB. It never becomes a key.
-- Guarantee: refused as `stale_lease` unless the token is the job's current one; dropped when nobody watches.
-- Arguments: `job` `token` `frame` (number) `data` (ComfyUI's format 4 frame).
-- Answer: `ok` `watch`; `stale_lease`.
local PART = 15360

local function preview(keys, argv)
  local u, a = Q.begin(keys, argv)
  local P = u.P
  local r = Q.holder(u, a.job, a.token)
  if not r then return { 'stale_lease' } end
  local watched = Q.watched(P, a.job, '0', 0)
  if watched == '0' then return { 'ok', 'watch', '0' } end
  local data = a.data or ''
  local parts = math.max(1, math.ceil(#data / PART))
  local channel = P .. 'pv:' .. u.deployment .. ':' .. a.job
  for part = 1, parts do
    call('SPUBLISH', channel, (a.frame or '0') .. '-' .. part .. '-' .. parts .. '\n'
      .. string.sub(data, (part - 1) * PART + 1, part * PART))
  end
  return { 'ok', 'watch', watched }
end

define{ function_name = 'emq_preview', callback = preview, flags = { 'allow-oom' } }
