"""Where every command begins: before its libraries are imported, which takes seconds.

The text streams are the user's, in whatever encoding the shell has: what that cannot write becomes
a question mark instead of an error. Ctrl-C is one line and exit code 130, at any moment.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended: 128 + SIGINT, as shells have it."""
_LINE = b"interrupted by Ctrl-C\n"


def begin() -> None:
    """Prepare the streams, and let Ctrl-C end the process at once: so far it has only imports.

    A program that was started with Ctrl-C ignored, as behind `&` or nohup, goes on ignoring it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def run(command: Callable[[], object]) -> NoReturn:
    """Run a command, and exit with the code that it returns; None is 0.

    From here on Ctrl-C is an exception, so that what the command started is ended.
    """
    interruption = _Interruption()
    interruption.listen()
    try:
        code = command()
    except BaseException:
        # libraries that are interrupted during an import or a call from C raise their own errors
        if not interruption.arrived:
            raise
        signal.signal(signal.SIGINT, _end_without_a_word)
        _tell()
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


class _Interruption:
    """Remembers that Ctrl-C arrived, even if a library turns its exception into another one."""

    arrived = False

    def listen(self) -> None:
        if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _end_at_once):
            signal.signal(signal.SIGINT, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.arrived = True
        raise KeyboardInterrupt


def _end_at_once(number: int, frame: FrameType | None) -> None:
    _tell()
    os._exit(INTERRUPTED)


def _end_without_a_word(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _tell() -> None:
    try:
        sys.stdout.flush()
        os.write(2, _LINE)
    except (OSError, ValueError):  # nobody reads it any more
        pass
