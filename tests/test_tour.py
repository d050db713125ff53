"""The tour names files that exist, few for each question, and fits on a screen."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "docs" / "tour.md"
PLACES = (ROOT, ROOT / "src" / "iceaggr")


def journeys() -> dict[str, list[str]]:
    """Read the questions and the files that answer each."""
    parts = re.split(r"^## ", TOUR.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {part.splitlines()[0]: re.findall(r"`([\w/]+\.(?:py|md|yaml))`", part) for part in parts}


def test_every_file_of_the_tour_exists():
    for question, names in journeys().items():
        assert names, question
        gone = [name for name in names if not any((place / name).is_file() for place in PLACES)]
        assert gone == [], question


def test_eight_questions_take_few_files_each():
    lengths = [len(dict.fromkeys(names)) for names in journeys().values()]
    assert len(lengths) == 8
    assert max(lengths) <= 20
    assert sum(length < 10 for length in lengths) > len(lengths) / 2


def test_tour_is_one_screen():
    assert len(TOUR.read_text(encoding="utf-8").splitlines()) <= 70
