"""The functions keep their promises over thousands of random histories, on both servers.

Without ``EMQ_HISTORIES`` the same 1,000 histories of 50 steps run on each server, so that a change is judged by what it
changed; with it, that many new ones, drawn by hypothesis: the way to look for what nobody has seen yet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from broker.queue.loader import library
from tests.support.history import STEPS, play
from tests.support.machine_whole import QueueMachine, machine_on
from tests.support.servers import RedisServer

SEARCH = os.environ.get("EMQ_HISTORIES")
HISTORIES = 1000
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]


def search(kind: type[QueueMachine], histories: int) -> None:
    """New histories; one that breaks a promise is made as short as it can be."""
    profile = settings(
        max_examples=histories, stateful_step_count=STEPS, deadline=None, suppress_health_check=QUIET, database=None,
        print_blob=False, phases=(Phase.explicit, Phase.generate, Phase.shrink), report_multiple_bugs=False,
    )  # fmt: skip
    run_state_machine_as_test(kind, settings=profile)


@pytest.fixture
def machine_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A database of one's own, by the Unix socket: the machine empties it before each history."""
    with redis.Redis.from_url(redis_server.socket_url, db=9) as client:
        client.function_load(library().text, replace=True)
        yield client
        client.flushdb()


@pytest.mark.timeout(1800)
def test_random_histories(machine_client: redis.Redis) -> None:
    kind = machine_on(machine_client)
    if SEARCH:
        search(kind, int(SEARCH))
    else:
        for seed in range(HISTORIES):
            play(kind, seed)
    assert kind.called == set(re.findall(r"'emq_(\w+)'", library().text)), "the histories leave functions out"


def test_a_history_is_the_same_each_time(machine_client: redis.Redis) -> None:
    told = [play(machine_on(machine_client), seed) for seed in (1, 2, 1)]
    assert told[0] == told[2] != told[1]
