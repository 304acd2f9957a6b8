-- Cancels a job that is not terminal.
function Q.cancel(u, r, reason)
  reason = reason and reason ~= '' and string.gsub(reason, '[\r\n]', ' ') or 'cancelled'
  if Q.HOME[r.status] == 'w' then
    Q.unwait(u, r)
    return Q.end_cancelled(u, r, reason)
  end
  if not r.cancel then Q.put(u, r, 'cancel', reason) end
  Q.hint(u, r.instance, 'cancel ' .. r._id)
end
