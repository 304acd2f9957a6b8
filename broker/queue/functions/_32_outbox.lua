-- The outbox of webhooks: what is to be told, written in the same call as what happened, so that neither is without
-- the other. An entry is `<job> <event> <attempt>.<round>`, and the same event of a job never has two.
function Q.outbox(u, r, event)
  if not r.hook or not string.find(' ' .. r.hook .. ' ', ' ' .. event .. ' ', 1, true) then return end
  local entry = r._id .. ' ' .. event .. ' ' .. (r.attempt or '0') .. '.' .. (r.round or '1')
  call('ZADD', u.P .. 'outbox', u.ms, entry)
end
