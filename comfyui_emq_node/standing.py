"""A claim that finds nothing stays with the queue, which may answer it in a hint when a job comes."""

from __future__ import annotations

from .queue import Claimed


class Standing:
    """One queue's claim that stays.

    Its token is kept until it has got a job: made again with it, the claim gets what a lost hint has brought.
    """

    def __init__(self) -> None:
        self._token = self._taken = ""

    def token(self, drawn: str) -> str:
        """What a claim that may stay is to be made with."""
        return self._token or drawn

    def answered(self, token: str, stays: bool) -> None:
        """The queue has answered a claim, and says whether it stays."""
        self._token = token if stays else ""

    def once(self, claimed: Claimed | None) -> Claimed | None:
        """A job as it comes, by an answer or a hint; None when it has come before."""
        if claimed is None or claimed.lease == self._taken:
            return None
        if claimed.lease == self._token:
            self._token = ""
        self._taken = claimed.lease
        return claimed
