from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from iceaggr.detector import icecube86, parse_geometry
from iceaggr.errors import ShardError
from iceaggr.events.layout import ABSENT_CHARGE
from iceaggr.normalization import Normalization, fit_normalization
from iceaggr.shards.data_card import data_card_html
from iceaggr.shards.data_card_plots import isotropic_share
from iceaggr.shards.sketches import Sketch
from iceaggr.shards.sketching import sketch_events
from tests.shards.dom_events_builder import random_dom_events
from tests.shards.shard_manifest_builder import manifest_of

DETECTOR = icecube86()
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
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert "<script" not in page
    assert "<link" not in page
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
