"""Show the log of a TrainJob's first pod as it grows, across restarts and broken connections."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import datetime

from iceaggr.machines.job_api import JobApi, KubernetesError, MainPod

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)$")
_Moment = tuple[float, int]


class PodLog:
    """Which lines of which pod have been shown: each once, whole, in order.

    A server may end a stream while its pod goes on writing. The log is then read again from its
    beginning, and what the time stamps call old is left out; a count of lines would fail when the
    node rotates the log.
    """

    def __init__(self, api: JobApi, job: str, say: Callable[[str], None]) -> None:
        self._api, self._job, self._say = api, job, say
        self._shown_until: dict[str, _Moment] = {}
        self._finished: set[str] = set()
        self._interrupted = False

    def follow(self, over: threading.Event, pause_s: float) -> None:
        """Show lines until over is set, then what is still missing."""
        while True:
            last_round = over.is_set()
            try:
                pod = self._api.main_pod(self._job)
                if pod is not None and pod.name not in self._finished:
                    self._show(pod, last=last_round)
                self._interrupted = False
            except KubernetesError as error:
                # a log is a convenience: what counts is the state of the job
                if not self._interrupted:
                    self._say(f"log of TrainJob {self._job} interrupted: {error}")
                self._interrupted = True
            if last_round:
                return
            over.wait(pause_s)

    def _show(self, pod: MainPod, last: bool) -> None:
        complete = last or pod.ended
        for stamped in self._api.log_lines(pod.name, follow=not last):
            stamp, _, line = stamped.partition(" ")
            moment = _moment(stamp)
            # no stamp: words of the node, not of the program; they come with each reading
            new = complete if moment is None else moment > self._shown_until.get(pod.name, (0.0, 0))
            if not new:
                continue
            if not line.endswith("\n") and not complete:
                return  # cut on its way: the next reading brings it whole
            self._say((line if moment else stamped).removesuffix("\n"))
            if moment is not None:
                self._shown_until[pod.name] = moment
        if pod.ended:
            self._finished.add(pod.name)


def _moment(stamp: str) -> _Moment | None:
    """Read the time of a line: seconds, and nanoseconds, which datetime would round."""
    match = _STAMP.match(stamp)
    if match is None:
        return None
    seconds, fraction, zone = match.groups()
    whole = datetime.fromisoformat(seconds + zone.replace("Z", "+00:00")).timestamp()
    return whole, int((fraction or "0").ljust(9, "0"))
