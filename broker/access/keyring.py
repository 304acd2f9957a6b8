"""The keys as one replica knows them: all in memory, read anew when they change, with an eye on what they opened."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from broker.access import keys
from broker.access.identity import Identity
from broker.access.keys import NO_KEY, Key
from broker.access.policies import Policies
from broker.access.store import AccessStore
from broker.access.usage import BEAT_S, Usage
from broker.access.users import User
from broker.errors import EmqError, Unauthorized
from broker.protocol.base import now_ms

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""A new key is honoured, and a revoked one ends what it opened, within about this time."""
SESSIONS_S = 2.0
USED_S = 60.0
"""The last use of a key is kept this coarsely."""

Close = Callable[[], Awaitable[None]]


class KeyRing:
    """Answers who shows a key without asking Redis; that is why a broker goes on while Redis is away."""

    def __init__(self, store: AccessStore, policies: Policies, *, may_be_open: bool) -> None:
        """``may_be_open``: without any key everybody may do everything (the broker listens on loopback only)."""
        self.policies = policies
        self.usage = Usage(store, policies)
        self.on_change: Callable[[], Awaitable[None]] | None = None
        """Called after the keys, people and tenants were read anew."""
        self._store = store
        self._open = may_be_open
        self._stamp = (-1, -1)
        self._keys: dict[str, Key] = {}
        self._users: dict[str, User] = {}
        self._watched: dict[Identity, dict[object, Close]] = {}
        self._used: dict[str, int] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._told_at = self._sessions_at = self._beat_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Read the keys, and again whenever they change."""
        await self._load()
        self._task = asyncio.create_task(self._look(), name="keyring")

    async def stop(self) -> None:
        """Stop looking, and write down what was used last."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, *self._closing, return_exceptions=True)
        with contextlib.suppress(EmqError):
            await self._note_use()
        await self.usage.stop()

    async def refresh(self) -> None:
        """Read them now: whoever changed them is to see it at once."""
        await self._load()

    @property
    def open(self) -> bool:
        """Whether no key was ever made: then none is needed. A broker that has seen a key is never open again."""
        return self._open

    def find(self, text: str) -> Identity:
        """Who shows this key; raises ``Unauthorized``, with the same words and work whatever is wrong with it."""
        key_id, digest = keys.split(text) or ("", "")
        key = self._keys.get(key_id, NO_KEY)
        now = now_ms()
        if not key.accepts(digest, now):
            raise Unauthorized("This key is not valid: it is unknown, or it has expired or been revoked.")
        self._used[key.key_id] = now
        return key.identity(digest)

    def user(self, name: str) -> User | None:
        """The person with this name."""
        return self._users.get(name)

    def tenants(self) -> list[str]:
        """Every tenant that has a live key, a person or limits of its own."""
        now = now_ms()
        names = {key.tenant for key in self._keys.values() if key.live(now)}
        return sorted(names | {user.tenant for user in self._users.values()} | set(self.policies.tenants))

    def holds(self, who: Identity) -> bool:
        """Whether what was true of an identity when it came still is."""
        if not who.key_id:
            return self._open
        user = self._users.get(who.key_id.removeprefix("user:"))
        if user is not None and user.key_id == who.key_id:
            return user.identity() == replace(who, session="")
        key = self._keys.get(who.key_id, NO_KEY)
        same = key.tenant == who.tenant and key.scopes == who.scopes
        return same and key.accepts(who.digest, now_ms())

    @contextlib.contextmanager
    def watch(self, who: Identity, close: Close) -> Iterator[None]:
        """``close`` is called as soon as the identity's key or session has ended, from within until the block's end."""
        token = object()
        closes = self._watched.setdefault(who, {})
        closes[token] = close
        try:
            yield
        finally:
            closes.pop(token, None)
            if not closes and self._watched.get(who) is closes:
                del self._watched[who]

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        while not self._stopping:  # a cancel that comes while redis-py connects can be lost
            await asyncio.sleep(LOOK_S)
            self._close_where(lambda who: not self.holds(who))
            try:
                if await self._store.stamp() != self._stamp:
                    await self._load()
                    self._close_where(lambda who: not self.holds(who))
                await self._check_sessions()
                if time.monotonic() - self._beat_at >= BEAT_S:
                    self._beat_at = time.monotonic()
                    await self.usage.beat()
                if time.monotonic() - self._told_at >= USED_S:
                    await self._note_use()
            except EmqError as error:
                log.debug("The keys could not be looked at: %s", error.message)
            except Exception:
                log.exception("The keys could not be looked at")

    async def _load(self) -> None:
        stamp = await self._store.stamp()
        version, found = await self._store.load()
        users, tenants = await self._store.users(), await self._store.tenants()
        if version and self._open:
            self._open = False
            if self._stamp[0] >= 0:
                log.info("There is a key or a user now: from here on everything needs a credential")
        self._keys, self._users = found, users
        self.policies.update(tenants, found)
        if self.on_change is not None:
            await self.on_change()
        self._stamp = stamp  # last: what failed is done again at the next look

    def _close_where(self, ended: Callable[[Identity], bool]) -> None:
        for who in [who for who in self._watched if ended(who)]:
            closes = self._watched.pop(who)
            log.info("The credential by key %s has ended: %s connections close", who.key_id or "none", len(closes))
            for close in closes.values():
                task = asyncio.ensure_future(close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def _check_sessions(self) -> None:
        if time.monotonic() - self._sessions_at < SESSIONS_S:
            return
        self._sessions_at = time.monotonic()
        sessions = sorted({who.session for who in self._watched if who.session})
        if sessions:
            living = await self._store.living(sessions)
            gone = set(sessions) - living
            self._close_where(lambda who: who.session in gone)

    async def _note_use(self) -> None:
        self._told_at = time.monotonic()
        used, self._used = self._used, {}
        try:
            await self._store.used(used)
        except EmqError:
            self._used = used | self._used
            raise
