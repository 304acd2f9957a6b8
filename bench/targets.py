"""What a benchmark is to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """One figure."""

    what: str
    reached: float
    wanted: float
    most: bool = False
    """``wanted`` is the most, not the least."""
    against: str = ""

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.reached <= self.wanted if self.most else self.reached >= self.wanted

    def line(self) -> str:
        """One row of the table."""
        verdict = "met" if self.met else "NOT met"
        sign = "≤" if self.most else "≥"
        return f"  {self.what:52} {sign} {self.wanted:6.2f}  {self.reached:8.2f}  {verdict:8} {self.against}"


def print_targets(targets: Iterable[Target]) -> None:
    """Print them as a table."""
    print("\ntargets")
    for target in targets:
        print(target.line())
