"""How long outputs are kept, where that is shorter than the life of their job's record."""

from __future__ import annotations

import re
from collections.abc import Mapping

from broker.errors import ConfigurationError

_RULE = re.compile(r"(?:(?P<tenant>[^=,]+)/)?(?P<status>completed|failed|cancelled|\*)=(?P<seconds>\d{1,10})")
ANY = "*"


class KeepRules:
    """Seconds by tenant and status: ``completed=3600,shop/completed=600,shop/*=60``; the most exact rule counts."""

    def __init__(self, rules: Mapping[tuple[str, str], int]) -> None:
        self._rules = dict(rules)

    def seconds(self, tenant: str, status: str) -> int | None:
        """How long after its end a job's files are kept; ``None``: as long as its record."""
        for key in ((tenant, status), (tenant, ANY), (ANY, status), (ANY, ANY)):
            if key in self._rules:
                return self._rules[key]
        return None

    @property
    def shortest(self) -> int | None:
        """The shortest of all, ``None`` when there are no rules."""
        return min(self._rules.values(), default=None)


NO_RULES = KeepRules({})


def parse_rules(text: str) -> KeepRules:
    """Read ``EMQ_KEEP_OUTPUTS``; raises ``ConfigurationError``."""
    rules: dict[tuple[str, str], int] = {}
    for part in (part.strip() for part in text.split(",")):
        found = _RULE.fullmatch(part) if part else None
        if found is not None:
            rules[found["tenant"] or ANY, found["status"]] = int(found["seconds"])
        elif part:
            raise ConfigurationError(
                f"EMQ_KEEP_OUTPUTS has {part!r}; it looks like completed=3600,failed=600,shop/completed=60,shop/*=0."
            )
    return KeepRules(rules)
