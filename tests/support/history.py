"""Histories of the state machine that their seed alone decides.

hypothesis would draw others in each test process: it takes constants from all modules that are loaded at that moment,
also where it is to be the same each time.
"""

from __future__ import annotations

import random

from tests.support.machine_whole import MENU, SOMETIMES, QueueMachine

STEPS = 50


def play(machine: type[QueueMachine], seed: int) -> list[str]:
    """One history to its end; answers what was done. Raises ``Broken``, with a note of it."""
    draw, history = random.Random(seed), machine()
    try:
        for _ in range(STEPS):
            history.step(
                what=draw.choice(MENU), pick=draw.randrange(31), number=draw.randrange(2**20),
                flag=draw.random() < 0.5, twice=draw.choice(SOMETIMES),
            )  # fmt: skip
        history.teardown()
    except Exception as error:
        error.add_note("\n".join([f"history {seed}:", *history.told]))
        raise
    return history.told
