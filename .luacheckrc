-- The files are joined into one Redis function library: Q is its one table, local to the joined chunk.
std = "lua51"
globals = { "Q" }
read_globals = { "redis", "cjson", "bit" }
max_line_length = 120
