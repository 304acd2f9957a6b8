"""What Redis and redis-py say when something cannot be done, as errors of ours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from ssl import SSLCertVerificationError
from typing import Any

from redis.asyncio.retry import Retry
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from broker.errors import ConfigurationError, EmqError, QueueFull, Unavailable
from broker.queue.loader import library

log = logging.getLogger(__name__)

# What a server says that cannot do it now, by the first word of its error.
LATER = ("LOADING", "BUSY", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS", "UNBLOCKED")


@contextmanager
def cancellable() -> Iterator[None]:
    """Raise a cancellation that redis-py has lost.

    It sends with ``asyncio.wait_for``, which in Python 3.11 loses a cancellation that comes as the sending ends, well
    or with an error: the task would go on, and whoever waits for its end would wait for ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
    if failure is not None:
        raise failure


@contextmanager
def translated(starting: bool = False) -> Iterator[None]:
    """Turn redis-py's errors into ours. A refused login is the configuration's fault when ``starting``."""
    try:
        with cancellable():
            yield
    except RedisError as error:
        failure = _translation(error, starting)
    except RedisClusterException as error:
        failure = _away(str(error))
    except (TimeoutError, OSError) as error:
        failure = _away(str(error) or "no answer in time")
    else:
        return
    raise failure


def _translation(error: RedisError, starting: bool) -> Exception:
    text = str(error)
    if isinstance(error, AuthenticationError | NoPermissionError) and starting:
        return ConfigurationError(f"Redis refuses the login: {text}. Set the user and password in EMQ_REDIS_URL.")
    if isinstance(error, OutOfMemoryError) or text.startswith(("OOM", "-OOM")):
        return QueueFull("Redis has no memory left for more jobs; try again later.", scope="memory", retry_after_s=5)
    if not isinstance(error, ResponseError) or text.partition(" ")[0] in LATER:
        return _away(text)
    if isinstance(error, ClusterDownError | ReadOnlyError | AskError):
        return _away(text or type(error).__name__)
    log.error("Redis refused a call: %s", library().explain(text))
    return EmqError("The queue could not do this; the broker's log says why.")


def _away(reason: str) -> Unavailable:
    return Unavailable("The queue cannot be reached; nothing was accepted, try again.", reason=reason)


class Again(Retry):
    """Repeats what failed, except where a certificate is refused: it would be again.

    On a slow machine the repetitions would outlast the call, whose error would then not say what is wrong.
    """

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[Any]],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Any:
        """As redis-py calls it."""
        return await super().call_with_retry(do, fail, is_retryable or _may_pass, with_failure_count)


def _may_pass(error: Exception) -> bool:
    return not isinstance(error.__context__, SSLCertVerificationError)
