"""What is simulated, and the counts that a simulation returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from iceaggr.built_in_detectors import built_in_name
from iceaggr.config import Section

N_EVENTS_PER_BLOCK = 500
"""Events that share one random stream; fixed, so that data never depend on files or processes."""

N_EVENT_IDS_PER_SEED = 1_000_000_000
"""Event ids are seed * this + number, so data of different seeds never share an id."""
MAX_ENERGY_GEV = 1e12
"""Ten times beyond the highest energies of the cosmos that were ever seen."""


ICECUBE = "icecube86"
Preset = Literal["competition", "easy"]
"""competition: as hard as the public set, with atmospheric muons and all triggers of IceCube. easy:
neutrinos alone and one trigger, for any detector; of IceCube the bytes of earlier versions."""
DEFAULT_PRESET: Preset = "competition"
PRESETS: dict[str, dict[str, Any]] = {
    "competition": {},
    "easy": {
        "min_energy_gev": 60.0,
        "max_energy_gev": 1e7,
        "spectral_index": 2.35,
        "hard_share": 0.005,
        "cascade_share": 0.50,
        "tau_share": 0.0,
        "muon_window_us": 0.0,
        "out_of_sight_share": 0.0,
        "earth": False,
        "busy_modules": False,
        "all_triggers": False,
    },
}
"""What a preset sets where the caller does not; the competition's are the defaults of the fields,
fitted to the public set's pulse counts, not to a flux."""


class SimulationConfig(Section):
    """Which events are simulated and how they are stored."""

    preset: Preset = DEFAULT_PRESET
    """Where the settings below that are not given come from; other detectors have `easy` only."""

    n_events: int = Field(20_000, ge=1, le=N_EVENT_IDS_PER_SEED)
    """Triggered events to write."""
    n_events_per_file: int = Field(5_000, ge=1, le=N_EVENT_IDS_PER_SEED)
    """Events in one batch file; the last file may hold fewer."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Seed of every random stream; also the leading digits of the event ids."""
    n_processes: int = Field(0, ge=0, le=4096)
    """Worker processes; 0 = one per core, 1 = in the caller. The data do not depend on it."""
    labels: bool = True
    """Write train/ with directions and truth; False = test/ without either."""
    detector: str = Field(ICECUBE, min_length=1)
    """A built-in detector's name, or a file of its geometry."""
    medium: Literal["", "ice", "water"] = ""
    """What the sensors stand in; empty = as the geometry says."""
    flavour: Literal["all", "numu"] = "all"
    """Neutrinos of all flavours, or muon neutrinos only: cascades are then neutral currents."""
    layout: Literal["raw", "nubench-sqlite", "nubench-parquet"] = "raw"
    """How events are written: as the public competition set, or as NuBench's sets."""
    min_energy_gev: float = Field(100.0, ge=1, le=MAX_ENERGY_GEV)
    """Lower end of the neutrino energy spectrum, in GeV."""
    max_energy_gev: float = Field(1e7, gt=1, le=MAX_ENERGY_GEV)
    """Upper end of the neutrino energy spectrum, in GeV."""
    spectral_index: float = Field(2.1, ge=1, le=4)
    """Most neutrino energies are drawn from E^-index before the trigger."""
    hard_share: float = Field(0.016, ge=0, le=1)
    """Share of interactions drawn from E^-1 instead: the origin of the giant events."""
    cascade_share: float = Field(0.39, ge=0, le=1)
    """Share of cascades among the interactions tried, before the trigger."""
    tau_share: float = Field(0.25, ge=0, le=1)
    """Share of tau neutrinos among the charged currents that are not of muon neutrinos."""
    muon_window_us: float = Field(50.0, ge=0, le=1_000)
    """Atmospheric muons within so many microseconds around the neutrino; 0 = none."""
    out_of_sight_share: float = Field(0.2, ge=0, lt=1)
    """Share of interactions tried too far outside to be seen: read out if a muon triggers."""
    earth: bool = True
    """Let the Earth absorb neutrinos on their way."""
    busy_modules: bool = True
    """Let modules be busy while they read, with afterpulses of every ion; False = simpler ones."""
    all_triggers: bool = True
    """Trigger as the detector does; False = on eight coincident hits alone."""
    max_photons_per_source: int = Field(300, ge=10, le=1_000_000)
    """A sensor that sees more photons from one source follows this many, each with more weight."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if isinstance(detector := given.get("detector"), str):
            given = given | {"detector": built_in_name(detector) or detector}
        elsewhere = given.get("detector", ICECUBE) != ICECUBE or given.get("medium") == "water"
        preset = given.get("preset", "easy" if elsewhere else DEFAULT_PRESET)
        return PRESETS.get(preset, {}) | given | {"preset": preset}

    @model_validator(mode="after")
    def _only_icecube_is_that_hard(self) -> SimulationConfig:
        elsewhere = self.detector != ICECUBE or self.medium == "water"
        if elsewhere and (self.muon_window_us > 0 or self.all_triggers):
            raise ValueError(
                "atmospheric muons and triggers are those of icecube86 in ice: preset easy has none"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_written(self) -> SimulationConfig:
        if self.layout != "raw" and not self.labels:
            raise ValueError("events without labels are written in the layout raw only")
        return self

    @model_validator(mode="after")
    def _energies_in_order(self) -> SimulationConfig:
        if self.min_energy_gev >= self.max_energy_gev:
            raise ValueError(
                f"a lower energy below the upper one, not {self.min_energy_gev:g} and"
                f" {self.max_energy_gev:g} GeV"
            )
        return self


@dataclass(frozen=True)
class SimulationSummary:
    """Counts of one simulation: what was tried, what was written and where."""

    out_uri: str
    medium_words: str
    """What the sensors stand in, or as what it is taken."""
    n_events: int
    n_files: int
    n_pulses: int
    n_interactions_tried: int
    """Interactions drawn to obtain the events; the rest gave no trigger or came too late."""
    n_pulses_outside_readout: int
    """Pulses of triggered events that fell outside the readout window."""
    seconds: float

    @property
    def events_per_second(self) -> float:
        """Triggered events per second of wall time."""
        return self.n_events / max(self.seconds, 1e-9)
