-- The files are joined into one Redis function library: Q, its one table, `call`, `setresp` and `define` are local to the
-- joined chunk (see broker/queue/loader.py).
std = "lua51"
globals = { "Q" }
read_globals = { "call", "setresp", "define", "redis", "cjson", "bit" }
max_line_length = 120
