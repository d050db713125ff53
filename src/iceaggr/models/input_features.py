"""Input features: normalised pulses, and what the configuration adds to them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ModelConfig
from iceaggr.models.normalizer import NormalizedInputs
from iceaggr.models.seed_frame import (
    N_EVENT_FEATURES,
    N_POSITION_FEATURES,
    N_SHAPES,
    N_TIMES,
    DomStatistics,
    SeedFrame,
    SeedMemory,
    Seeds,
    dom_statistics,
    event_size,
    event_time_ns,
    find_seeds,
    n_alternatives,
    seed_frame,
)
from iceaggr.normalization_document import Normalization

# Fourier encoding: a coordinate as sines and cosines of many wavelengths.


class FourierEncoding(nn.Module):
    """Encodes coordinates at wavelengths spaced evenly in their logarithm.

    17 m of light path are 77 ns: a network that sees microseconds in one number does not resolve
    it. The phases are computed in float32, before any cast to a shorter type.
    """

    wave_numbers: Tensor

    def __init__(self, shortest: float, longest: float, n_bands: int) -> None:
        super().__init__()
        exponents = torch.linspace(0, 1, n_bands, dtype=torch.float64)
        wavelengths = longest * (shortest / longest) ** exponents
        numbers = (2 * math.pi / wavelengths).float()
        self.register_buffer("wave_numbers", numbers, persistent=False)

    def width(self, n_coordinates: int) -> int:
        """Count the columns made from n_coordinates."""
        return 2 * n_coordinates * self.wave_numbers.shape[0]

    def forward(self, coordinates: Tensor) -> Tensor:
        """Encode coordinates (R, K) in the unit of the wavelengths into (R, 2 K bands)."""
        phase = (coordinates.float()[..., None] * self.wave_numbers).flatten(1)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


TIME_WAVES_NS = (50.0, 40_000.0)
"""Shortest and longest wave of times relative to the event, which may last tens of microseconds."""
RESIDUAL_WAVES_NS = (20.0, 10_000.0)
"""Of times relative to those expected of the seed, which scattering blurs by tens of ns."""
PLACE_WAVES_M = (20.0, 2_000.0)
"""Of positions: from the distance of neighbours on a string to more than the detector."""
FAR_FROM_ORIGIN_M = 500.0
"""Distance of an array from its origin beyond which positions are taken from its middle."""
N_SIZE_FEATURES = 4


@dataclass(frozen=True)
class Features:
    """What the transformers see. What a network does not ask for has no columns.

    pulses: (N, F) float32; doms: (D, F') float32; events: (B, F'') float32
    places: (D, 4) float32, x, y, z in m and first time in ns relative to the event
    rotation: (B, 3, 3) float32, the seed's frame, or None without a seed
    vectors: (D, 3, 3) float32, where each DOM lies in that frame, or None
    """

    pulses: Tensor
    doms: Tensor
    events: Tensor
    places: Tensor
    rotation: Tensor | None
    vectors: Tensor | None


class InputFeatures(nn.Module):
    """Computes the features that the configuration asks for; it holds no weights."""

    origin_m: Tensor | None

    def __init__(self, config: ModelConfig, normalization: Normalization) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("origin_m", _distant_origin(normalization))
        self.register_load_state_dict_pre_hook(_without_origin)
        self._memory: SeedMemory | None = None
        bands = config.fourier_bands
        self.time_waves = FourierEncoding(*TIME_WAVES_NS, bands)
        self.residual_waves = FourierEncoding(*RESIDUAL_WAVES_NS, bands)
        self.place_waves = FourierEncoding(*PLACE_WAVES_M, bands)
        in_frame, statistics = config.seed_frame, config.dom_statistics
        n_clocks = 3 if in_frame else 1
        self.n_pulse_features = 4 + (n_clocks - 1) + n_clocks * self.time_waves.width(1)
        self.n_dom_features = 3 + self.place_waves.width(3)
        if in_frame:
            self.n_dom_features += N_POSITION_FEATURES
        if statistics:
            self.n_dom_features += N_SHAPES + n_clocks * (2 * N_TIMES + self.time_waves.width(1))
        self.n_event_features = N_SIZE_FEATURES
        asks = [statistics, config.event_token, config.relative_bias, bands > 0]
        self.is_plain = config.seed == "none" and not any(asks)
        if in_frame:
            self.n_event_features += N_EVENT_FEATURES + 3 * n_alternatives(config)

    def remember_seeds(self) -> None:
        """Fit each event once from now on; for training, where the same events come back.

        On a GPU nothing is remembered: asking which events a batch holds would hold it up.
        """
        if self.config.seed != "none":
            self._memory = SeedMemory(self.config)

    def _seeds(self, batch: EventBatch) -> Seeds:
        if self._memory is None or batch.time_ns.device.type != "cpu":
            return find_seeds(batch, self.config)
        return self._memory.seeds(batch)

    @torch.no_grad()
    def forward(self, batch: EventBatch, inputs: NormalizedInputs) -> Features:
        """Compute all features in float32, whatever the autocast; none is differentiated."""
        if self.origin_m is not None:
            batch = replace(batch, xyz_m=batch.xyz_m - self.origin_m)
        with torch.autocast(batch.time_ns.device.type, enabled=False):
            return self._features(batch, inputs)

    def _features(self, batch: EventBatch, inputs: NormalizedInputs) -> Features:
        if self.is_plain:
            # order statistics would be sorted out for nobody
            nothing = inputs.xyz_norm[:, :0]
            pulses = self._pulses(batch, inputs, [])
            of_events = nothing.new_empty(batch.n_events, 0)
            return Features(pulses, inputs.xyz_norm, of_events, nothing, None, None)
        statistics = dom_statistics(batch)
        time_zero = event_time_ns(batch, statistics)[batch.dom_event_idx()]
        frame, rotation = None, None
        if self.config.seed != "none":
            frame = seed_frame(batch, statistics, self._seeds(batch))
            rotation = frame.rotation
        if not self.config.seed_frame:
            frame = None
        clocks = [time_zero] if frame is None else [time_zero, *frame.expected_ns.unbind(-1)]
        first = (statistics.times_ns[:, 0] - time_zero)[:, None]
        events = [event_size(batch, statistics)]
        if frame is not None:
            events.append(frame.event_features)
        return Features(
            pulses=self._pulses(batch, inputs, clocks)
            if self.config.n_dom_layers
            else batch.time_ns.new_empty(batch.n_pulses, 0),
            doms=self._doms(batch, inputs, statistics, frame, clocks),
            events=torch.cat(events, dim=-1),
            places=torch.cat([batch.xyz_m, first], dim=-1),
            rotation=rotation,
            vectors=None if frame is None else frame.vectors,
        )

    def _pulses(self, batch: EventBatch, inputs: NormalizedInputs, clocks: list[Tensor]) -> Tensor:
        dom = batch.pulse_dom_idx()
        columns = [
            inputs.time_norm,
            inputs.charge_norm,
            inputs.auxiliary_norm,
            inputs.sensor_norm[dom],
        ]
        residuals = [batch.time_ns - clock[dom] for clock in clocks]
        columns += [_compress(residual) for residual in residuals[1:]]
        waves = [self._waves(i)(residual[:, None]) for i, residual in enumerate(residuals)]
        return torch.cat([torch.stack(columns, dim=-1), *waves], dim=-1)

    def _doms(
        self,
        batch: EventBatch,
        inputs: NormalizedInputs,
        statistics: DomStatistics,
        frame: SeedFrame | None,
        clocks: list[Tensor],
    ) -> Tensor:
        columns = [inputs.xyz_norm, self.place_waves(batch.xyz_m)]
        if frame is not None:
            columns.append(frame.position)
        if self.config.dom_statistics:
            columns.append(statistics.shapes)
            for i, clock in enumerate(clocks):
                residual = statistics.times_ns - clock[:, None]
                columns += [residual / 3000, _compress(residual)]
                columns.append(self._waves(i)(residual[:, :1]))
        return torch.cat(columns, dim=-1)

    def _waves(self, clock: int) -> FourierEncoding:
        return self.time_waves if clock == 0 else self.residual_waves


def _distant_origin(normalization: Normalization) -> Tensor | None:
    """Find the middle of the data where it is far from the origin: (3,) float32 metres, or None.

    Positions enter as metres; those of an array at z = -3000 m would be beyond what they are
    scaled by. Arrays about their origin stay, and so do the models trained on them.
    """
    positions = (normalization.x_m, normalization.y_m, normalization.z_m)
    centre = [p.centre if abs(p.centre) > FAR_FROM_ORIGIN_M else 0.0 for p in positions]
    return torch.tensor(centre) if any(centre) else None


def _without_origin(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Load a model that was trained before positions had an origin as it was trained."""
    assert isinstance(module, InputFeatures)
    name = f"{prefix}origin_m"
    if module.origin_m is not None and name not in state:
        state[name] = torch.zeros_like(module.origin_m)


def _compress(residual_ns: Tensor) -> Tensor:
    """Resolve 10 ns near zero and keep 10 us finite: near one."""
    return torch.asinh(residual_ns / 15) / 3
