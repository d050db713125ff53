"""Asking a service that is away again: one way to do it, for every client of the project.

A request is made again while its service may come back, with growing pauses, until the patience is
over. What can never succeed is told at once. How long a pod waits is the same for all clients: for
what its step cannot do without, and for a first answer of what it can do without.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

log = logging.getLogger(__name__)

FIRST_CONTACT_S = 60.0
"""How long the first contact of a pod may take.

Network policies are programmed after a pod has started. Until the network plugin knows the pod,
each of its connections is refused or dropped: seconds as a rule, more on a busy node.
"""
AWAY_S = 1800.0
"""How long a pod waits for what its step cannot do without: object store, registry, Kubernetes.

With the defaults of Kubeflow Pipelines 2.17 a step whose process fails is not started again, so it
must outlast an upgrade, a failing node or a database that recovers. Metrics are no such thing.
"""
_IN_A_POD = "KUBERNETES_SERVICE_HOST"

Answer = TypeVar("Answer")


def first_contact_s(environment: Mapping[str, str] = os.environ) -> float:
    """Give how long a service that never answered is asked again.

    Returns FIRST_CONTACT_S in a pod; 0 elsewhere, where silence means a wrong address.
    """
    return FIRST_CONTACT_S if is_in_a_pod(environment) else 0.0


def away_s(elsewhere_s: float = 0.0, environment: Mapping[str, str] = os.environ) -> float:
    """Give how long a service is waited for without which a step cannot go on.

    elsewhere_s: outside a pod, where a person looks on and starts it again
    Returns AWAY_S in a pod.
    """
    return AWAY_S if is_in_a_pod(environment) else elsewhere_s


def is_in_a_pod(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether Kubernetes runs this process."""
    return bool(environment.get(_IN_A_POD))


def may_pass(error: BaseException | None) -> bool:
    """Tell whether the same may succeed later: the error says so, or the one that caused it."""
    while error is not None:
        if getattr(error, "may_pass", False):
            return True
        error = error.__cause__
    return False


def ask_patiently(
    request: Callable[[], Answer],
    *,
    is_away: Callable[[Exception], bool],
    patience_s: float,
    first_pause_s: float = 0.5,
    longest_pause_s: float = 5.0,
    sleep: Callable[[float], object] = time.sleep,
    say: Callable[[str], object] = log.warning,
    tell_after: int = 1,
) -> Answer:
    """Make a request, and make it again while its service is away.

    A failure is told, so that nobody wonders what the process waits for.
    request: may run more than once
    is_away: tells of an error whether the same request may succeed later; asked once of each
    sleep: waits so many seconds; an Event's `wait` ends the pause early
    say: tells the failure of this number, `tell_after`
    Raises: what the request raises; at once if its service is not away, else when no further
    attempt begins within `patience_s` seconds.
    """
    until, pause_s, n_failed = time.monotonic() + patience_s, first_pause_s, 0
    while True:
        try:
            return request()
        except Exception as error:
            left_s = until - time.monotonic()
            if not is_away(error) or left_s <= 0:
                raise
            n_failed += 1
            if n_failed == tell_after:
                say(f"{_first_line(error)}; asking again for {left_s:.0f} s")
        # many processes that lost the same service must not come back together
        sleep(min(pause_s * random.uniform(0.7, 1.3), left_s))
        pause_s = min(2 * pause_s, longest_pause_s)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
