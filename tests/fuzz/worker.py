"""One target under atheris, in a process of its own: python -m tests.fuzz.worker TARGET FOLDER S.

A finding is written to FOLDER/findings and the work goes on; a crash of native code, a hang or too
much memory ends the process, and libFuzzer leaves the input there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["iceaggr"]):
    from tests.fuzz.target import load_target

HANG_S = 300
MAX_MIB = 4096
MAX_BYTES = 1 << 18


class Worker:
    """Counts executions and keeps one input for each place where a reader failed."""

    def __init__(self, name: str, folder: Path, seconds: float) -> None:
        with atheris.instrument_imports(include=["iceaggr"]):
            self.target = load_target(name)
        self.findings = folder / "findings"
        self.statistics = folder / "statistics" / f"{name}.json"
        self.counts = {"executions": 0, "accepted": 0, "refused": 0, "findings": 0}
        self.known: set[str] = set()
        self.started = self.saved = time.monotonic()
        self.seconds = seconds

    def run(self, data: bytes) -> None:
        """Read one input and note what came of it."""
        try:
            accepted = self.target.accepts(data)
        except Exception as error:
            self._keep(data, error)
        else:
            self.counts["accepted" if accepted else "refused"] += 1
        self.counts["executions"] += 1
        if time.monotonic() > self.saved + 1:
            self.save()

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """Damage the meaning of an input in most cases, its bytes in the others."""
        rng = Random(seed)
        if rng.random() < 0.3:
            return atheris.Mutate(data, max_size)
        for _ in range(rng.choice([1, 1, 2, 3])):
            data = self.target.damage(data, rng)
        return data[:max_size]

    def save(self) -> None:
        """Write the counts; the process may end at any time."""
        self.saved = time.monotonic()
        seconds = self.saved - self.started
        self.statistics.write_text(json.dumps({**self.counts, "seconds": round(seconds, 1)}))
        if seconds > self.seconds:
            # libFuzzer's own end waits for the threads of Arrow, sometimes for ever
            os._exit(0)

    def _keep(self, data: bytes, error: Exception) -> None:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "iceaggr" in frame.filename or "fuzz" in frame.filename
        ]
        place = ";".join(f"{Path(f.filename).stem}:{f.name}:{f.lineno}" for f in frames[-2:])
        lacks_part = frames and frames[-1].name == "accepts"
        key = f"{type(error).__name__} {place} {str(error)[:60] if lacks_part else ''}"
        if key in self.known:
            return
        self.known.add(key)
        self.counts["findings"] += 1
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        stem = self.findings / f"{self.target.name}-{digest}"
        stem.with_suffix(".input").write_bytes(data)
        stem.with_suffix(".txt").write_text(
            f"{key}\n\n{''.join(traceback.format_exception(error))}"
        )
        print(f"{self.target.name}: {key}: {error}"[:300], flush=True)


def main() -> None:
    """Fuzz one target for some seconds."""
    name, folder, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    corpus = folder / "corpus" / name
    for made in (corpus, folder / "findings", folder / "statistics"):
        made.mkdir(parents=True, exist_ok=True)
    worker = Worker(name, folder, seconds)
    for seed in worker.target.seeds:
        (corpus / f"seed-{hashlib.sha256(seed).hexdigest()[:12]}").write_bytes(seed)
    options = [
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={MAX_MIB}",
        f"-max_len={MAX_BYTES}",
        f"-artifact_prefix={folder / 'findings'}/{name}-",
        "-verbosity=0",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *options], worker.run, custom_mutator=worker.mutate)
    worker.save()
    atheris.Fuzz()


if __name__ == "__main__":
    main()
