"""A disk-backed queue between a run and its tracking server, so that an outage costs no time.

Every record is appended to a file at once and sent by a background thread, in order. Memory stays
small however long the server is away; what was never sent stays in the file, ready for replay.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]

RECORDS = "unsent.jsonl"
_BATCH_RECORDS = 200
_GATHER_S = 0.5
_LONGEST_WAIT_S = 10.0


class Outbox:
    """Sends records through `send(records)`, which raises to have them sent again later."""

    def __init__(self, send: Callable[[list[Record]], None], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._send = send
        self._path = folder / RECORDS
        self._writer = self._path.open("a", encoding="utf-8")
        self._n_put = 0
        self._n_sent = 0
        self._offset = self._writer.tell()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._is_closed = False
        self.last_error = ""
        self._thread = threading.Thread(target=self._run, name="tracking-outbox", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Take a record; never waits for the server. Raises: ValueError after `close`."""
        line = json.dumps(record) + "\n"
        with self._changed:
            if self._is_closed:
                raise ValueError("the tracker is finished: nothing more can be logged")
            self._writer.write(line)
            self._writer.flush()
            self._n_put += 1
            self._changed.notify_all()

    def flush(self, within_s: float) -> int:
        """Wait until all is sent or the time is over; returns the number of unsent records."""
        deadline = time.monotonic() + within_s
        with self._changed:
            self._deadline = deadline
            self._changed.notify_all()
            while self._n_sent < self._n_put and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(left_s)
            self._deadline = None
            return self._n_put - self._n_sent

    def close(self, within_s: float) -> int:
        """Flush and end; returns how many records stay unsent in the file."""
        n_unsent = self.flush(within_s)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout=_LONGEST_WAIT_S)
        with self._changed:
            self._writer.close()
            n_unsent = self._n_put - self._n_sent
            self._keep_unsent_only()
        return n_unsent

    def _run(self) -> None:
        wait_s = _GATHER_S
        while True:
            with self._changed:
                while self._n_sent == self._n_put and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                self._pause(wait_s)
            records, end = self._read()
            try:
                self._send(records)
            except Exception as error:
                self.last_error = " ".join(str(error).split())[:300]
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                continue
            wait_s = _GATHER_S
            with self._changed:
                self._offset = end
                self._n_sent += len(records)
                self._changed.notify_all()

    def _pause(self, wait_s: float) -> None:
        """Gather more records, or leave a failing server alone; somebody who waits cuts it short.

        Called with the lock held.
        """
        someone_waits = self._changed.wait_for(
            lambda: self._is_closed or self._deadline is not None, timeout=wait_s
        )
        if someone_waits and wait_s > _GATHER_S:
            self._changed.wait_for(lambda: self._is_closed, timeout=_GATHER_S)

    def _read(self) -> tuple[list[Record], int]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            records: list[Record] = []
            while len(records) < _BATCH_RECORDS and (line := file.readline()).endswith(b"\n"):
                records.append(json.loads(line))
            return records, file.tell()

    def _keep_unsent_only(self) -> None:
        unsent = self._path.read_bytes()[self._offset :]
        if unsent:
            self._path.write_bytes(unsent)
        else:
            self._path.unlink()
