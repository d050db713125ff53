"""Starts, stops and shows the local services: `python -m iceaggr.local_services up|down|status`."""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import argparse
import sys

from iceaggr.errors import IceaggrError
from iceaggr.local_services.services import LocalServices


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m iceaggr.local_services", description=__doc__)
    parser.add_argument("verb", choices=("up", "down", "status"))
    parser.add_argument("--state", default=".iceaggr", help="folder that holds data and logs")
    asked = parser.parse_args(arguments)
    services = LocalServices(asked.state)
    try:
        if asked.verb == "up":
            services.start()
        elif asked.verb == "down":
            services.stop()
        status = services.status()
    except IceaggrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for service in status:
        state = f"running at {service.address}" if service.is_running else "stopped"
        print(f"{service.name:<16} {state:<36} log {service.log}")
    if asked.verb == "up":
        print(f"settings for a shell: source {services.folder / 'env.sh'}")
    return 0


if __name__ == "__main__":
    from iceaggr.entry import run

    run(main)
