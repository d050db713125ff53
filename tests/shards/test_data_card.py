from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from iceaggr.detector import WATER, icecube86, parse_geometry
from iceaggr.errors import ShardError
from iceaggr.events.layout import ABSENT_CHARGE
from iceaggr.normalization_document import Normalization
from iceaggr.shards.data_card import data_card_html, drift_table, newly_silent_doms, stability_index
from iceaggr.shards.data_card_plots import isotropic_share
from iceaggr.shards.sketches import Sketch
from iceaggr.shards.sketching import empty_sketch, sketch_events
from iceaggr.shards.statistics import fit_normalization
from tests.shards.dom_events_builder import random_dom_events
from tests.shards.shard_manifest_builder import manifest_of

DETECTOR = icecube86()
EVENTS = random_dom_events(1500, seed=1)
BEFORE = sketch_events(EVENTS, DETECTOR)
SCALING = fit_normalization(BEFORE)


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_drift_flags_nothing_for_another_draw_of_the_same_data(seed: int) -> None:
    now = sketch_events(random_dom_events(200, seed=seed), DETECTOR)
    assert not [row for row in drift_table(now, BEFORE, SCALING) if row.flags]


def test_drift_is_zero_against_itself() -> None:
    for row in drift_table(BEFORE, BEFORE, SCALING):
        assert (row.shift, row.stability_index, row.distance, row.flags) == (0, 0, 0, ())
        assert row.std_ratio == 1


def test_drift_flags_the_feature_that_moved_and_no_other() -> None:
    louder = replace(EVENTS, charge_pe=EVENTS.charge_pe * np.float32(1.5))
    rows = drift_table(sketch_events(louder, DETECTOR), BEFORE, SCALING)
    flagged = {row.name: row for row in rows if row.flags}
    assert list(flagged) == ["log10_charge"]
    charge = flagged["log10_charge"]
    assert charge.flags == ("mean", "PSI", "KS")
    assert charge.shift == pytest.approx(np.log10(1.5) / SCALING.charge_pe.scale, rel=1e-4)


def test_drift_flags_a_change_of_shape_that_keeps_the_mean() -> None:
    centre = int(BEFORE.features["time_ns"].mean)
    wider = replace(EVENTS, time_ns=centre + 2 * (EVENTS.time_ns - centre))
    row = drift_table(sketch_events(wider, DETECTOR), BEFORE, SCALING)[0]
    assert row.name == "time_ns"
    assert abs(row.shift) < 0.01
    assert row.std_ratio == pytest.approx(2, rel=0.01)
    assert row.flags == ("PSI", "KS")


def test_drift_says_what_cannot_be_compared() -> None:
    string = "".join(f"{k},{k},9,{17 * k}\n" for k in range(60))
    other = parse_geometry(f"sensor_id,x,y,z\n{string}", "string.csv")
    now = sketch_events(random_dom_events(50, seed=1, detector=other, labelled=False), other)
    rows = {row.name: row for row in drift_table(now, BEFORE, SCALING)}
    assert rows["x_m"].flags == ("different bins",)
    assert rows["zenith"].flags == ("no values",)
    assert math.isnan(rows["zenith"].stability_index)
    assert newly_silent_doms(now, BEFORE) == []


def test_newly_silent_doms_are_those_expected_to_be_hit() -> None:
    now = replace(BEFORE, dom_hits=BEFORE.dom_hits.copy())
    silent = [10, 4000]
    now.dom_hits[silent] = 0
    enough = [row for row in silent if BEFORE.dom_hits[row] >= 20]
    assert enough
    assert newly_silent_doms(now, BEFORE) == enough
    assert newly_silent_doms(BEFORE, empty_sketch(DETECTOR)) == []


def test_stability_index_matches_its_definition_on_even_tenths() -> None:
    before = np.full(10, 1000.0)
    now = np.array([2000.0] + [1000.0] * 8 + [0.0])
    p, q = (now + 0.5) / (now + 0.5).sum(), (before + 0.5) / (before + 0.5).sum()
    assert stability_index(now, before) == pytest.approx(np.sum((p - q) * np.log(p / q)))
    # finer bins of the same two distributions fall into the same tenths
    assert stability_index(np.repeat(now / 4, 4), np.repeat(before / 4, 4)) == pytest.approx(
        stability_index(now, before)
    )


SPLITS: dict[str, Sketch] = {
    split: sketch_events(random_dom_events(n, seed=n), DETECTOR)
    for split, n in (("train", 400), ("validation", 50), ("test", 49))
}
HOSTILE = "s3://raw/<script>alert(1)</script>&.parquet"
MANIFEST = manifest_of(
    SPLITS, uri=HOSTILE, rejected_events={"no pulses": 3}, rejected_pulses={"unknown <sensor>": 71}
)


@pytest.fixture(scope="module")
def page() -> str:
    previous = sketch_events(random_dom_events(300, seed=9, median_pulses=200), DETECTOR)
    return data_card_html(MANIFEST, SPLITS, fit_normalization(SPLITS["train"]), DETECTOR, previous)


class Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def text_of(page: str) -> str:
    parser = Text()
    parser.feed(re.sub(r"<(svg|style)\b.*?</\1>", "", page, flags=re.DOTALL))
    return " ".join(" ".join(parser.parts).split())


def test_card_asks_nothing_from_outside(page: str) -> None:
    loads = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)""", page)
    targets = {(a or b).strip("\"' ") for a, b in loads}
    assert targets
    assert all(target.startswith(("#", "data:image/png;base64,", "data:,")) for target in targets)
    assert "<script" not in page
    assert page.count("<link") == page.count('<link rel="icon" href="data:,">')
    assert "@import" not in page


def test_card_shows_what_a_converted_source_never_had() -> None:
    manifest = MANIFEST.model_copy(update={"notes": (ABSENT_CHARGE, "label: azimuth <rad>")})
    scaling = fit_normalization(SPLITS["train"])
    page = data_card_html(manifest, SPLITS, scaling, DETECTOR)
    assert f"<li>{ABSENT_CHARGE}</li>" in page
    assert "label: azimuth &lt;rad&gt;" in page


def test_card_names_data_and_geometry_by_digest(page: str) -> None:
    words = f"Shards {MANIFEST.digest()} · geometry icecube86 ( {DETECTOR.digest()[:16]} )"
    assert words in text_of(page)


def test_card_escapes_text_from_the_data(page: str) -> None:
    assert "s3://raw/&lt;script&gt;alert(1)&lt;/script&gt;&amp;.parquet" in page
    assert "unknown &lt;sensor&gt;" in page


def test_card_balances_the_account(page: str) -> None:
    text = text_of(page)
    n_pulses = sum(s.n_pulses for s in SPLITS.values())
    assert "Events balance: 502 in = 499 kept + 3 rejected" in text
    assert f"Pulses balance: {n_pulses + 71:,} in = {n_pulses:,} kept + 71 rejected" in text
    assert "pulses unknown <sensor> 71" in text


def test_card_shouts_when_pulses_are_unaccounted_for_and_has_no_drift_without_previous() -> None:
    manifest = manifest_of(SPLITS, n_pulses_lost=5)
    text = text_of(data_card_html(manifest, SPLITS, Normalization.seed(), DETECTOR))
    assert "5 pulses are unaccounted for: in is not kept + rejected" in text
    assert "Pulses balance" not in text
    assert "Drift" not in text
    assert "preset seed" in text


def test_card_shows_every_figure_as_sound_svg(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 7 * 2 + 3 + 1 + 2 + 2
    for drawing in drawings:
        ET.fromstring(drawing)
    ids = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) >= 15


def test_card_flags_drift_against_the_previous_data(page: str) -> None:
    rows = re.findall(r'<tr class="flagged"><td class="left">(\w+)</td>', page)
    assert {"n_pulses", "n_doms"} <= set(rows)
    assert "azimuth" not in rows
    assert "300 before" in text_of(page)


def test_card_is_the_same_in_every_run_and_leaves_the_plot_settings_alone(page: str) -> None:
    settings = dict(matplotlib.rcParams)
    scaling = fit_normalization(SPLITS["train"])
    previous = sketch_events(random_dom_events(300, seed=9, median_pulses=200), DETECTOR)
    assert data_card_html(MANIFEST, SPLITS, scaling, DETECTOR, previous) == page
    assert dict(matplotlib.rcParams) == settings


def test_card_describes_another_detector_without_labels_strings_charge_or_flag() -> None:
    table = "".join(f"{7 * k},{k % 5 * 40},{k // 5 % 4 * 40},{-20 * k}\n" for k in range(60))
    detector = parse_geometry(f"sensor_id,x,y,z\n{table}", "other.csv")
    events = random_dom_events(60, seed=1, detector=detector, labelled=False)
    events.charge_pe[:] = 1
    events.auxiliary[:] = False
    sketches: dict[str, Sketch] = {"train": sketch_events(events, detector)}
    scaling = fit_normalization(sketches["train"], ["charge_pe", "auxiliary"])
    text = text_of(data_card_html(manifest_of(sketches), sketches, scaling, detector))
    assert "These events have no labels." in text
    assert "60 sensors in the table, 60 in use" in text
    assert "through ice, because the geometry does not say" in text
    wet = replace(detector, stated_medium=WATER)
    text = text_of(data_card_html(manifest_of(sketches), sketches, scaling, wet))
    assert "Light is taken to travel through water." in text


def test_card_refuses_data_without_a_train_split() -> None:
    with pytest.raises(ShardError, match=r"no train split to describe .*: found \['test'\]"):
        data_card_html(MANIFEST, {"test": SPLITS["test"]}, Normalization.seed(), DETECTOR)


def test_isotropic_share_integrates_to_one_and_follows_the_sine() -> None:
    zenith = np.linspace(0, np.pi, 61)
    share = isotropic_share("zenith", zenith)
    assert share.sum() == pytest.approx(1)
    middle = (zenith[1:] + zenith[:-1]) / 2
    np.testing.assert_allclose(share, np.sin(middle) / 2 * np.diff(zenith), rtol=2e-4)
    np.testing.assert_allclose(isotropic_share("azimuth", np.linspace(0, 2 * np.pi, 13)), 1 / 12)
