"""What several commands take, and the values that an option may have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from iceaggr.errors import ConfigError

MAX_SEED = 2**31 - 1
"""Of a simulation, which has it among the leading digits of the event ids."""
MAX_SIMULATED_EVENTS = 10**9
"""Of one seed, whose event ids would run into those of the next."""
MAX_PROCESSES = 4096


def named_folder(text: str) -> Path:
    """Take the name of a run's folder; pathlib takes an empty one for the current folder.

    Raises: ConfigError if it is empty.
    """
    if not text.strip():
        raise ConfigError(
            "no folder named",
            where="--folder",
            found=repr(text),
            expected="a folder for this run alone",
            remedy="Name one; . is the current folder",
        )
    return Path(text)


FOLDER = typer.Option(
    help="Folder that the steps of one run share", parser=named_folder, metavar="PATH"
)
Folder = Annotated[Path, FOLDER]
Uri = Annotated[str, typer.Option(help="file:///absolute/folder or s3://bucket/folder")]


class Unpredicted(StrEnum):
    """What the file of predictions has for an event without a valid pulse."""

    nan = "nan"
    zero = "zero"
    leave_out = "leave-out"


class Benchmark(StrEnum):
    """What can be measured."""

    shard = "shard"
    loader = "loader"
    streaming = "streaming"
    train = "train"
