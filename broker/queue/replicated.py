"""Submits that count only once a replica of Redis has them (``EMQ_DURABILITY=replica``).

A failover then loses nothing that was accepted, unless it loses that replica, too. ``WAIT`` looks at the last write
of its own connection; a repeated submit writes nothing, and what it repeats may be on no replica yet. So each is
followed by a small write, which lies behind everything that its answer rests on.
"""

from __future__ import annotations

from broker.errors import Unavailable

FUNCTIONS = frozenset({"emq_submit"})
"""Whose answers are promises."""
WAIT_S = 3.0
"""How long a replica may take. One that is well needs the time of a message to it and back."""
UNCONFIRMED = "no replica has confirmed it"


def confirmation(prefix: str) -> list[tuple[str | int, ...]]:
    """What follows the call on its connection; the last one's answer is what :func:`confirm` takes."""
    return [("SET", f"{prefix}confirm", "1", "PX", 60_000), ("WAIT", 1, round(WAIT_S * 1000))]


def confirm(replicas: int) -> None:
    """Raises ``Unavailable`` when none has it: as with a lost answer, it may be there, and may be lost yet."""
    if replicas < 1:
        raise Unavailable(
            "No replica of Redis has confirmed this in time; submit it again under the same idempotency_key.",
            reason=UNCONFIRMED,
        )
