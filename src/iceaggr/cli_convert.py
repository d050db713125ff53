"""The verb that takes other people's files: what was found is told before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from iceaggr.cli_options import Uri, finite
from iceaggr.errors import ConfigError

if TYPE_CHECKING:
    from iceaggr.events.label_reading import LabelReading


class Points(StrEnum):
    """Where the direction of the truth points."""

    origin = "origin"
    particle = "particle"


class SensorIds(StrEnum):
    """What tells the sensor of a pulse."""

    auto = "auto"
    column = "column"
    string = "string"
    position = "position"


class MediumName(StrEnum):
    """What the sensors stand in."""

    water = "water"
    ice = "ice"


_TEXTS = ("pulses", "truth", "geometry", "medium", "direction", "sensor_ids")
_MAPPING = (*_TEXTS, "columns", "units", "label_reading")


def convert(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="SQLite, Parquet or HDF5 files, or folders of them", metavar="INPUT"),
    ],
    out: Uri,
    geometry: Annotated[
        str,
        typer.Option(help="All sensors: CSV, Parquet, Prometheus' .geo, or a built-in one's name"),
    ] = "",
    medium: Annotated[
        MediumName | None,
        typer.Option(help="What the sensors stand in, where the geometry does not say it"),
    ] = None,
    pulses: Annotated[str, typer.Option(help="Table of pulses", metavar="TABLE")] = "",
    truth: Annotated[str, typer.Option(help="Table of truth", metavar="TABLE")] = "",
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="A column by its name, such as time_ns=dom_time; may be repeated. FIELD=none is"
            " a field that the file does not have",
            metavar="FIELD=COLUMN",
        ),
    ] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option(
            help="A unit other than ns, m, rad, GeV: time=us, position=cm, angle=deg; may be"
            " repeated",
            metavar="QUANTITY=UNIT",
        ),
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help=f"The same in a YAML file: {', '.join(_MAPPING)}")
    ] = None,
    direction: Annotated[
        Points | None,
        typer.Option(help="Where the truth points: to its origin (default), or along the particle"),
    ] = None,
    label_reading: Annotated[
        list[str] | None,
        typer.Option(
            help="How azimuth and zenith are meant otherwise, a word of data.label_reading; may be"
            " repeated",
            metavar="WORD",
        ),
    ] = None,
    accept_labels: Annotated[
        bool, typer.Option("--accept-labels", help="Take labels that a line fit contradicts")
    ] = False,
    sensor_ids: Annotated[
        SensorIds | None,
        typer.Option(help="What tells a sensor: its id's column, string and dom, or its place"),
    ] = None,
    renumber: Annotated[
        bool, typer.Option("--renumber", help="Number the events of several inputs anew")
    ] = False,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="There is no truth: write test/ for prediction")
    ] = False,
    time_offset: Annotated[
        float, typer.Option(callback=finite, help="ns to add to all times")
    ] = 0.0,
    events_per_file: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Events per raw file")
    ] = 20_000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what was found and used, and write nothing")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask whether what the source lacks may be constant")
    ] = False,
) -> None:
    """Convert another detector's events to the raw layout, stating what they lack.

    Tables, columns and units are guessed where they are not named, and told in
    a table. What the whole source never has, charge or auxiliary, is asked for
    once, kept beside the events and shown in every data card made of them.
    """
    from iceaggr.events.conversion import ConversionSettings
    from iceaggr.events.sources import GivenNames
    from iceaggr.steps.convert import run_convert

    given = _mapping(mapping)
    settings = ConversionSettings(
        names=GivenNames(
            pulses=pulses or given.get("pulses", ""),
            truth=truth or given.get("truth", ""),
            columns=given.get("columns", {}) | _pairs(column, "--column", "FIELD=COLUMN"),
            units=given.get("units", {}) | _pairs(unit, "--unit", "QUANTITY=UNIT"),
        ),
        geometry=geometry or given.get("geometry", ""),
        medium=medium.value if medium else given.get("medium", ""),
        sensor_ids=sensor_ids.value if sensor_ids else given.get("sensor_ids", "auto"),
        label_reading=_reading(direction, label_reading, given),
        renumber=renumber,
        unlabelled=unlabelled,
        time_offset_ns=time_offset,
        n_events_per_file=events_per_file,
    )
    ask = None if yes else _ask
    run_convert(
        inputs, settings, out.rstrip("/"), dry_run=dry_run, accept_labels=accept_labels, ask=ask
    )


def _reading(
    direction: Points | None, words: Sequence[str] | None, given: Mapping[str, Any]
) -> LabelReading:
    """Put together what is said of the labels. Raises: ConfigError."""
    from iceaggr.events.label_reading import WORDS, LabelReading

    said = list(words or given.get("label_reading", ()))
    if (direction or given.get("direction")) == Points.particle:
        said.append("particle")
    for word in said:
        if word not in WORDS:
            raise ConfigError(
                "unknown reading of the labels",
                where=f"--label-reading {word}",
                found=repr(word),
                expected=", ".join(WORDS),
                remedy="Give one of these",
            )
    return LabelReading.of(word for word in WORDS if word in said)


def _pairs(given: Sequence[str] | None, flag: str, form: str) -> dict[str, str]:
    """Take NAME=VALUE apart. Raises: ConfigError."""
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (equals and name.strip() and value.strip()) or name.strip() in found:
            raise ConfigError(
                f"{flag} cannot be read",
                where=f"{flag} {text}",
                found="a name given twice" if name.strip() in found else repr(text),
                expected=form,
                remedy=f"Write {flag} {form}, once for each",
            )
        found[name.strip()] = value.strip()
    return found


def _mapping(path: Path | None) -> dict[str, Any]:
    """Read the file of --mapping. Raises: ConfigError."""
    if path is None:
        return {}
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _bad_mapping(path, " ".join(str(error).split())[:200]) from None
    if not isinstance(document, dict):
        raise _bad_mapping(path, type(document).__name__)
    choices = {"direction": Points, "sensor_ids": SensorIds, "medium": MediumName}
    for name, value in document.items():
        if name in ("columns", "units"):
            sound = isinstance(value, dict)
            sound = sound and all(isinstance(text, str) for pair in value.items() for text in pair)
        else:
            texts = value if name == "label_reading" and isinstance(value, list) else [value]
            sound = name in _MAPPING and all(isinstance(text, str) for text in texts)
            sound = sound and all(text in [*choices.get(name, texts)] for text in texts)
        if not sound:
            raise _bad_mapping(path, f"{name}: {value}")
    return document


def _bad_mapping(path: Path, found: str) -> ConfigError:
    return ConfigError(
        "the mapping cannot be read",
        where=f"--mapping {path}",
        found=found,
        expected=f"YAML with some of {', '.join(_MAPPING)}; columns and units as NAME: NAME",
        remedy="Write it as docs/data_formats.md says",
    )


def _ask(lacking: Sequence[str]) -> None:
    """Ask once; where nobody sits at a terminal only a yes on stdin is one.

    Raises: ConfigError for another answer, or none.
    """
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    print("\n".join(lacking), flush=True)
    print(f"Convert all the same? [{'Y' if is_terminal else 'y'}/n] ", end="", file=sys.stderr)
    sys.stderr.flush()
    line = sys.stdin.readline() if sys.stdin is not None else ""
    if not is_terminal:
        print(file=sys.stderr)
    answer = line.strip().lower()
    if answer in ("y", "yes") or (is_terminal and line == "\n"):
        return
    raise ConfigError(
        "not converted",
        where="iceaggr convert",
        found=f"the answer {answer}" if answer else "no answer",
        expected="that what the source lacks may be constant",
        remedy="--yes says so; name the columns with --column FIELD=COLUMN if the file has them",
    )
