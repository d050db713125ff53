"""The pages in a real browser: sandboxed, no errors, no outside requests, figures shown."""

from pathlib import Path

import pytest

from iceaggr.config import EvaluationConfig
from iceaggr.evaluation.comparison import compare_runs
from iceaggr.evaluation.evaluation import evaluate
from tests.evaluation.track_events import LineFitModel, track_batch, truth_of

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_MS = 180_000

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    config = EvaluationConfig(n_bootstrap=100, n_displays=1)
    batches = [track_batch(150, seed=0)]
    found = evaluate(LineFitModel(), batches, truth_of(batches), config)
    other = evaluate(LineFitModel(blur=0.3), batches, truth_of(batches), config)
    compared = compare_runs({"one": found.events, "two": other.events}, config)
    return {"evaluation": found.report_html, "comparison": compared.html}


@pytest.mark.parametrize("name", ["evaluation", "comparison"])
def test_page_shows_every_figure_without_errors_or_requests(pages, name, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    inner, outer = tmp_path / "report.html", tmp_path / "frame.html"
    inner.write_text(pages[name])
    # the pipelines UI shows reports in a frame that may run nothing
    outer.write_text('<iframe sandbox src="report.html" width="1200" height="900"></iframe>')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-gpu"],
            timeout=PATIENCE_MS,
        )
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        errors: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(outer.as_uri())
        page.goto(inner.as_uri())
        widths = page.eval_on_selector_all("img", "all => all.map(img => img.naturalWidth)")
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        browser.close()
    assert errors == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert len(widths) == pages[name].count("<img ") > 0
    assert min(widths) >= 600
    assert overflow <= 0
