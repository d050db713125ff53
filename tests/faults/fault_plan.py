"""Which request meets which fault: drawn from a seed, counted per kind."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ANY = ("GET", "HEAD", "PUT", "POST", "DELETE")
METHODS: dict[str, tuple[str, ...]] = {
    "internal_error": ANY,
    "slow_down": ANY,
    "reset": ANY,
    "answer_lost": ANY,
    "stall": ANY,
    "truncated": ("GET",),
    "wrong_bytes": ("GET",),
    "wrong_upload": ("PUT",),
    "trickle": ("GET",),
    "endless_trickle": ("GET",),
    "expired": ANY,
    "disk_full": ("PUT", "POST"),
}
"""The requests that each kind of fault can meet.

internal_error, slow_down, disk_full, expired: 500, 503, 507 and 403, in S3's words
reset: the connection is reset before the request is done; answer_lost: after it was done
stall: no answer until the client has given up
truncated: half of the body; wrong_bytes: one byte of it changed; wrong_upload: of the request's
trickle: the body comes slowly, but comes; endless_trickle: a byte now and then, for ever
"""
KINDS = tuple(METHODS)
ANSWERS = {
    "internal_error": (500, "InternalError", "We encountered an internal error."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
    "disk_full": (507, "XMinioStorageFull", "Storage backend has reached its minimum free space."),
}


@dataclass(frozen=True)
class Request:
    """What a fault is chosen by. n_body: bytes that the client sends."""

    method: str
    path: str
    query: str
    n_body: int = 0

    @property
    def is_object(self) -> bool:
        """Tell whether the request is about one object, not about a bucket."""
        return self.path.count("/") >= 2 and not self.path.endswith("/") and not self.query


class FaultPlan:
    """Draws faults with a rate; at most `max_in_a_row` in succession for the same request.

    kinds: those in play; the one met least so far among the possible ones is taken.
    only: a pattern that the path must match.  max_in_a_row 0: no limit, a permanent fault.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        rate: float = 1.0,
        seed: int | str = 0,
        max_in_a_row: int = 2,
        only: str = "",
    ) -> None:
        self.kinds = tuple(kinds)
        self.rate = rate
        self.only = re.compile(only)
        self.max_in_a_row = max_in_a_row
        self.counts: Counter[str] = Counter()
        self.n_requests = 0
        self._in_a_row: Counter[tuple[str, str]] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def draw(self, request: Request) -> str:
        """Choose the fault of a request, '' for none, and count it."""
        with self._lock:
            self.n_requests += 1
            possible = [kind for kind in self.kinds if _meets(kind, request)]
            name = (request.method, request.path)
            tired = self.max_in_a_row and self._in_a_row[name] >= self.max_in_a_row
            spared = self._random.random() >= self.rate
            if not possible or tired or spared or not self.only.search(request.path):
                self._in_a_row[name] = 0
                return ""
            least = min(self.counts[kind] for kind in possible)
            kind = self._random.choice([k for k in possible if self.counts[k] == least])
            self.counts[kind] += 1
            self._in_a_row[name] += 1
            return kind

    def take_back(self, kind: str) -> None:
        """Uncount a fault that could not be injected, such as a change of an empty body."""
        with self._lock:
            self.counts[kind] -= 1

    def position(self, n_bytes: int) -> int:
        """Choose the byte to change."""
        with self._lock:
            return self._random.randrange(n_bytes)


def _meets(kind: str, request: Request) -> bool:
    if request.method not in METHODS[kind]:
        return False
    if kind in ("wrong_bytes", "trickle", "endless_trickle"):
        return request.is_object  # lists carry no checksum at any store: see docs/guarantees.md
    if kind == "wrong_upload":
        return request.is_object and request.n_body > 0
    return True
