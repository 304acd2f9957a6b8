-- emq_version: which library is loaded.
-- Guarantee: reads nothing; may be called without a key.
-- Arguments: none.
-- Answer: `ok` `library`.
define{
  function_name = 'emq_version', flags = { 'no-writes', 'allow-stale' },
  callback = function() return { 'ok', 'library', Q.int(Q.VERSION) } end,
}
