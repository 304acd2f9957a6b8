"""The state machine can fail: each fault that is planted in the functions is found, by the rule that it breaks."""

from __future__ import annotations

import ast
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from broker.queue import invariants
from broker.queue.loader import library
from tests.support import audit
from tests.support.audit import Broken
from tests.support.history import play
from tests.support.machine_whole import QueueMachine, machine_on
from tests.support.servers import RedisServer, valkey_binary

HISTORIES = 2000
"""Most faults show in the first ten, which ends the search; the rarest does in one of fifty or so."""

# What is planted: the function's text, what it becomes, and the rules that may show it.
FAULTS: dict[str, tuple[str, str, set[str]]] = {
    "a job that goes back is in no lane": (
        "  Q.lane_add(u, r)\n  if not silent", "  if not silent", {"state"},
    ),
    "a job stays in its lane after a cancel": (
        "    Q.lane_remove(u, r)\n  else", "    Q.fix(u, Q.lane_class(r), r.tenant)\n  else", {"state", "count"},
    ),
    "a new head is not indexed": (
        "if head[2] and tonumber(head[2]) >= score then", "if false then", {"order", "I1"},
    ),
    "a parked lane stays a head": (
        "  call('ZREM', P .. 'h:' .. class, tenant)\n  call('ZADD', P .. 'parked:'",
        "  call('ZADD', P .. 'parked:'", {"order", "bounded"},
    ),
    "a counter misses a status": (
        "  counts[status] = (counts[status] or 0) + 1\n", "", {"count"},
    ),
    "a level miscounts its waiting jobs": (
        "  if tag > v.V then v.V = tag end\n  v.waiting = v.waiting - 1", "  if tag > v.V then v.V = tag end",
        {"count"},
    ),
    "a webhook is not told": ("if r.hook then Q.outbox(u, r, status) end", "", {"I1"}),
    "any token will do": ("if r.token == token and (", "if (", {"I7"}),
    "a claim counts twice": (
        "token, u.ms, Q.more(r.attempt)", "token, u.ms, Q.more(Q.more(r.attempt))",
        {"I6", "attempt"},
    ),
    "attempts have no end": (
        "if not retry or NEVER[code] or not attempts_left(r) then", "if not retry or NEVER[code] then", {"attempt"},
    ),
    "a hand-back counts": (
        "  Q.let_go(u, r, 'pending', true)\n  Q.add(u, r, 'uncounted', 1)", "  Q.let_go(u, r, 'pending', true)",
        {"I6", "attempt"},
    ),
    "an end can be overturned": (
        "if r.status == 'completed' or r.status == 'failed' then return", "if r.status == 'completed' then return",
        {"I5", "state"},
    ),
    "a cancel is forgotten": ("if not r.cancel then return false end", "do return false end", {"I5", "state"}),
    "leases never lapse": ("if not in_force(u) then return 0 end", "do return 0 end", {"I3"}),
    "a lost worker's jobs stay with it": (
        "Q.lost(u, r) end\n  end\n  Q.forget_instance", "Q.lost(u, r) end\n    break\n  end\n  Q.forget_instance",
        {"state", "lease", "count", "I3"},
    ),
    "an event number is skipped": (
        "Q.more(r.events)", "Q.more(r.status == 'failed' and Q.more(r.events) or r.events)", {"I9", "log"},
    ),
    "an end is not told": (
        "  Q.finish(u, r, 'cancelled')\n  Q.update(u, r, reason)", "  Q.finish(u, r, 'cancelled')", {"I9", "log"},
    ),
    "a finished job stays for ever": ("for _, r in ipairs(u.lives) do", "for _, r in ipairs({}) do", {"life"}),
    "retention never comes": (
        "for _, id in ipairs(old) do\n    Q.forget(", "for _, id in ipairs({}) do\n    Q.forget(", {"I10"},
    ),
    "a cap holds nobody back": (
        "return t.paused or (t.max_running > 0 and", "return t.paused or (false and", {"cap", "fit"},
    ),
    "a drained worker gets jobs": (
        "if u.paused or w.paused or w.drain then return { 'paused' } end",
        "if u.paused or w.paused then return { 'paused' } end", {"drain"},
    ),
    "another tenant's job is served": (
        "if r and tenant and tenant ~= '' and r.tenant ~= tenant then return nil end", "",
        {"I14", "I7"},
    ),
    "a key is forgotten": ("  if not stored then return nil end", "  do return nil end", {"P3"}),
    "the last comes first": ("'ZPOPMIN', Q.lane_key(", "'ZPOPMAX', Q.lane_key(", {"fifo", "priority"}),
    "anybody may run anything": (
        "if has == 0 then return false end", "if has == 2 then return false end", {"fit", "match"},
    ),
    "slots do not count": ("or not ahead and held >= slots then", "or not ahead and held >= slots + 9 then", {"load"}),
    "a gathered set is not written": ("  Q.write_sets(u)\n", "", {"state", "count", "I3"}),
    "a repeated claim gets another job": (
        "local before = Q.claimed_before(w, token)", "local before", {"repeat", "I7"},
    ),
    "a failed worker gets the job again": (
        "return c[2] == w._id and Q.served(u, c[1], w.profile)\nend", "return false\nend", {"avoid"},
    ),
    "a small GPU gets again what was too large": (
        "  if vram_mb then return Q.vram_mb(u, w.profile) <= vram_mb and", "  if vram_mb then return false and",
        {"avoid"},
    ),
    "a child waits for ever": (
        "  if Q.add(u, r, 'deps', -1) > 0 then return end", "  if Q.add(u, r, 'deps', -1) > -9 then return end",
        {"dependency", "state"},
    ),
    "a standing claim knows no caps": ("if Q.held_back(u, r.tenant) or Q.refusal", "if Q.refusal", {"cap", "fit"}),
    "a job is given in silence": ("  Q.hint(u, w.instance, as_hint(answer))\n", "", {"I1"}),
    "a delay never ends": ("if r then Q.due(u, r) else", "if r then do end else", {"I3", "I1"}),
    "a group's figures are forgotten": ("out[#out + 1] = g[status] or '0'", "out[#out + 1] = '0'", {"I4"}),
    "a worker's jobs are not told": (
        "'held:' .. w.instance, 0, -1)) do\n    held", "'held:' .. w.instance, 0, -2)) do\n    held", {"I8"},
    ),
    "failed jobs are not in the history": (
        "if #wanted == 0 then wanted = { 'completed', 'failed' }", "if #wanted == 0 then wanted = { 'completed' }",
        {"search"},
    ),
    "a claim starts the job": ("  Q.move(u, r, 'claimed')\n", "  Q.move(u, r, 'processing')\n", {"I2"}),
    "an idle worker is not listed": (
        "  call('ZADD', key, u.ms, w._id)\n", "", {"order"},
    ),
    "a class is compared with nobody": (
        "  u.classes[class] = nil\n  return Q.match_class(u, class)", "  u.classes[class] = nil\n  return false",
        {"match"},
    ),
    "a worker that leaves still counts": (
        "  Q.unset_idle(u, w)\n  Q.leave_profile(u, w.profile)", "  Q.unset_idle(u, w)", {"count"},
    ),
    "a parent does not know who waits for it": (
        "      call('SADD', u.P .. 'kids:' .. id, j.id)\n", "", {"dependency"},
    ),
    "a bucket has no bottom": ("if b.tokens < math.min(cost, burst) then", "if false then", {"limit"}),
    "a limit of sockets is not kept": (
        "if change.n > 0 and change.limit > 0 and now + change.n > change.limit then", "if false then", {"limit"},
    ),
    "a repair moves what is in its place": ("if in_lane and not r.score then", "if in_lane then", {"I7", "repair"}),
    "a repair sends an idle worker to the back": (
        "Q.put_in_place(u, w.idle, key, call('ZSCORE', P .. key, w._id) or u.ms, w._id)",
        "Q.put_in_place(u, w.idle, key, u.ms, w._id)", {"repair"},
    ),
}  # fmt: skip


def rules() -> Iterator[str]:
    """Every rule that the state machine checks, its own and those of ``broker.queue.invariants``."""
    checks = {"need": 1, "Finding": 0}
    for path in [Path(invariants.__file__), *Path(audit.__file__).parent.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in checks:
                rule = node.args[checks[node.func.id]]
                if isinstance(rule, ast.Constant):
                    yield str(rule.value)


def test_each_rule_has_a_fault_that_breaks_it() -> None:
    planted = {rule for _, _, broken in FAULTS.values() for rule in broken}
    assert not set(rules()) - planted


@pytest.fixture(scope="module")
def faulty() -> Iterator[redis.Redis]:
    """A server of its own: the library is global to a server, and here it is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="emq-faulty-"))
    server = RedisServer("faulty", valkey_binary(), folder).start()
    with redis.Redis.from_url(server.socket_url, db=9) as client:
        yield client
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


def broken_by(kind: type[QueueMachine], seed: int) -> str:
    """What a history breaks first: a rule, the machine itself, or nothing.

    That is not always the rule that the fault is about: what goes wrong with one job has consequences for others.
    """
    try:
        play(kind, seed)
    except Broken as broken:
        return str(broken).partition(":")[0]
    except Exception as error:
        return repr(error)
    return ""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(faulty: redis.Redis, name: str) -> None:
    good, bad, rules = FAULTS[name]
    text = library().text
    assert text.count(good) == 1, f"the text to change is there {text.count(good)} times: {good}"
    faulty.function_load(text.replace(good, bad), replace=True)
    seen = Counter[str]()
    for seed in range(HISTORIES):
        seen[broken := broken_by(machine_on(faulty), seed)] += 1
        if broken in rules:
            return
    pytest.fail(f"the histories break none of {sorted(rules)}, but {dict(seen)}")
