r"""Make the pictures of the README from a finished run.

    make up && make run && source .iceaggr/services/env.sh
    python benchmarks/readme_pictures.py --report .iceaggr/report-RUN.html --mlflow LINK \
        --graph SCREENSHOT.png --crop 220 160 1700 1280

`--report` is the run's report, `--mlflow` the address of the table of runs that the last screen
prints, and `--graph` a screenshot of the run's graph in the Kubeflow UI. Each picture is shrunk
and reduced to few colours, so that all of them stay below 300 KB.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
MAX_BYTES = 300_000
N_COLOURS = 96
FIGURES = {"event_display": "event_best_1", "angle_vs_energy": "angle_vs_energy"}
CHROMIUM = "/usr/bin/chromium"
PATIENCE_MS = 60_000


def figure_of_report(html: str, figure_id: str) -> Image.Image:
    """Find one figure of a report. Raises: ValueError if the report does not have it."""
    pattern = rf'<figure[^>]*id="{figure_id}">\s*<img src="data:image/png;base64,([^"]+)"'
    found = re.search(pattern, html)
    if found is None:
        raise ValueError(f"the report has no figure {figure_id}")
    return Image.open(io.BytesIO(base64.b64decode(found.group(1))))


def screenshot(address: str, size: tuple[int, int] = (1500, 800)) -> Image.Image:
    """Open a page in a headless browser and take its picture once it has come to rest."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.goto(address, wait_until="networkidle", timeout=PATIENCE_MS)
        page.wait_for_timeout(3000)  # tables are drawn after the last request
        png = page.screenshot()
        browser.close()
    return Image.open(io.BytesIO(png))


def save_small(picture: Image.Image, name: str, width: int) -> int:
    """Shrink a picture and write it with few colours. Returns its size in bytes."""
    height = round(picture.height * width / picture.width)
    small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    path = PICTURES / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    small.quantize(N_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    return path.stat().st_size


def main(
    report: Annotated[Path | None, typer.Option(help="Report of a run, report-RUN.html")] = None,
    mlflow: Annotated[str, typer.Option(help="Address of MLflow's table of runs")] = "",
    graph: Annotated[Path | None, typer.Option(help="Screenshot of the graph in Kubeflow")] = None,
    crop: Annotated[
        tuple[int, int, int, int] | None, typer.Option(help="left, top, right, bottom of the graph")
    ] = None,
) -> None:
    """Write the pictures for which something is given, and check their size."""
    if report is not None:
        html = report.read_text(encoding="utf-8")
        for name, figure_id in FIGURES.items():
            width = 420 if name == "event_display" else 800
            save_small(figure_of_report(html, figure_id), name, width)
    if mlflow:
        # without the panel of MLflow's assistant
        save_small(screenshot(mlflow).crop((200, 0, 1100, 480)), "mlflow", 800)
    if graph is not None:
        picture = Image.open(graph)
        save_small(picture.crop(crop or (0, 0, *picture.size)), "kubeflow_graph", 800)
    sizes = {path.name: path.stat().st_size for path in sorted(PICTURES.glob("*.png"))}
    total = sum(sizes.values())
    for name, n_bytes in sizes.items():
        print(f"{name:24} {n_bytes / 1000:6.0f} KB")
    if total > MAX_BYTES:
        raise SystemExit(f"error: {total:,} bytes of pictures, at most {MAX_BYTES:,} are wanted")


if __name__ == "__main__":
    typer.run(main)
