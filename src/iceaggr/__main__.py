"""The command `iceaggr`, also as `python -m iceaggr`."""

from __future__ import annotations

from typing import NoReturn

from iceaggr.entry import begin, run


def main() -> NoReturn:
    """Serve the command line, which imports its libraries only now."""
    begin()
    from iceaggr import cli

    run(cli.main)


if __name__ == "__main__":
    main()
