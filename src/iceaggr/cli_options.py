"""What several commands take, and the values that an option may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

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


def finite(value: float | None) -> float | None:
    """Pass a number on, and none at all. Raises: typer.BadParameter for nan and inf."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


MaxTrainMinutes = Annotated[
    float, typer.Option(min=0.0, help="Limit of training; 0 = as configured")
]
GpuCountOption = Annotated[
    str,
    typer.Option(
        help="GPUs of this machine that train, one process each; 0 = CPU, configured = one"
        " process as training.device says (auto: a GPU if there is one)"
    ),
]
StartFrom = Annotated[
    str, typer.Option(help="Weights to begin with: scratch, champion, or configured")
]
Uri = Annotated[str, typer.Option(help="file:///absolute/folder or s3://bucket/folder")]

# Of a simulation.

NumberOfEvents = Annotated[
    int, typer.Option(min=1, max=MAX_SIMULATED_EVENTS, help="How many events")
]
EventsPerFile = Annotated[
    int, typer.Option(min=1, max=MAX_SIMULATED_EVENTS, help="Events per raw file")
]
SimulationSeed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Same seed, same bytes")]
Processes = Annotated[int, typer.Option(min=0, max=MAX_PROCESSES, help="0 = one per core")]
WithoutLabels = Annotated[bool, typer.Option("--test", help="Write test/ without labels")]
DetectorOption = Annotated[
    str, typer.Option(help="A built-in one (iceaggr detectors), or a file of its geometry")
]
MediumOption = Annotated[str, typer.Option(help="water or ice; empty = as the geometry says")]
Preset = Annotated[
    str,
    typer.Option(
        help="competition: as hard as the public set, with atmospheric muons and all triggers;"
        " easy: neutrinos alone, one trigger; empty = competition for icecube86, else easy"
    ),
]
Energies = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Of neutrinos, GeV: from and to; else the preset's", metavar="LO HI"),
]
SpectralIndex = Annotated[
    float | None,
    typer.Option(
        help="Energies are drawn from E^-index, before the trigger; without it, the preset's"
    ),
]
FlavourOption = Annotated[str, typer.Option(help="all, or numu: muon neutrinos only")]
SimulatedLayout = Annotated[
    str, typer.Option(help="raw; nubench-sqlite or nubench-parquet, which convert reads")
]

# Of a model and what it is asked about.

ModelUri = Annotated[str, typer.Option(help="models:/NAME@champion, or a model folder's URI")]


class Unpredicted(StrEnum):
    """What the file of predictions has for an event without a valid pulse."""

    nan = "nan"
    zero = "zero"
    leave_out = "leave-out"


PredictionOutput = Annotated[
    Path,
    typer.Option(
        help="File to write: .parquet (event_id, azimuth, zenith, kappa) or .csv (the"
        " competition's submission format: event_id, azimuth, zenith)"
    ),
]
UnpredictedEvents = Annotated[
    Unpredicted | None,
    typer.Option(
        help="What an event without a valid pulse gets: nan; zero, that is straight down-going"
        " (azimuth 0, zenith 0); leave-out, no row. Without it .parquet has nan, and .csv, in"
        " which a competition wants a direction for every event, zero; --layout nubench leaves out"
    ),
]
AcceptDoubtful = Annotated[
    bool,
    typer.Option(
        "--accept-doubtful",
        help="Predict files that are wrong as a whole or unlike the training data, with a warning",
    ),
]
SameDetector = Annotated[
    bool,
    typer.Option(
        "--same-detector",
        help="Raw events without sensor_geometry.csv are of the model's detector",
    ),
]
Refine = Annotated[
    bool, typer.Option("--refine", help="Fit bright events photon by photon, from there on")
]
RefineAbove = Annotated[
    float | None,
    typer.Option(
        "--refine-above",
        min=1.0,
        callback=finite,
        help="--refine events of at least so many triggering p.e.; else from where it pays in"
        " the detector's medium",
        show_default=False,
    ),
]


class PredictionLayout(StrEnum):
    """Columns of a file of predictions."""

    iceaggr = "iceaggr"
    nubench = "nubench"


Layout = Annotated[
    PredictionLayout,
    typer.Option(
        help="nubench: test events with their truth, as the benchmark's plotting tool reads them,"
        " in MODEL_...direction....parquet"
    ),
]
ScoredFolder = Annotated[
    Path | None,
    typer.Option(
        help="With --layout nubench, instead of --model and --raw-uri: folder of a run, whose"
        " scored test events are written",
        parser=named_folder,
        metavar="PATH",
    ),
]
ScoredRun = Annotated[str, typer.Option(help="The same for an MLflow run: its name, id or address")]
ScoredModel = Annotated[
    str, typer.Option(help="With --raw-uri: models:/NAME@champion, or a model folder's URI")
]
ScoredEvents = Annotated[
    str, typer.Option(help="With --model: labelled raw events, the folder above train/")
]
PredictionFiles = Annotated[
    list[Path] | None,
    typer.Option(help="Instead: a file of predictions, of any model (Parquet, as NuBench's)"),
]
ReportPage = Annotated[
    Path | None,
    typer.Option(
        help="Page to write, of raw events or of --predictions, which else has it beside the file"
    ),
]
Reversed = Annotated[
    bool, typer.Option("--reversed", help="With --predictions: its vectors point the other way")
]
ReversedFiles = Annotated[
    list[str] | None,
    typer.Option("--reversed", help="One of the files, whose vectors point the other way"),
]
BenchmarkSet = Annotated[
    str, typer.Option("--set", help="With --predictions: NuBench's set, if the file does not say")
]


class Benchmark(StrEnum):
    """What can be measured."""

    shard = "shard"
    loader = "loader"
    streaming = "streaming"
    convert = "convert"
    train = "train"


def with_fields_as_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function: a parameter that is a dataclass gives an option per field.

    So a group of options that several verbs take is spelled once, by its dataclass.
    """
    own = signature(verb, eval_str=True).parameters
    groups = {
        name: signature(parameter.annotation, eval_str=True).parameters
        for name, parameter in own.items()
        if hasattr(parameter.annotation, "__dataclass_fields__")
    }

    @wraps(verb)
    def command(**given: Any) -> None:
        for name, fields in groups.items():
            given[name] = own[name].annotation(**{field: given.pop(field) for field in fields})
        verb(**given)

    options = [
        option.replace(kind=Parameter.KEYWORD_ONLY)
        for name, parameter in own.items()
        for option in groups.get(name, {name: parameter}).values()
    ]
    # what typer reads; the annotations are those of the signature
    vars(command).update(__signature__=Signature(options))
    command.__annotations__ = {}
    return command
