"""A new value of a pulse is said in three places, and then travels from raw file to minibatch."""

import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent.parent / "src" / "iceaggr"

PLACES = (
    (
        "events/schema.py",
        '    PulseValue("auxiliary", "auxiliary", FLAG, pa.bool_(), np.bool_),\n',
        '    PulseValue("width_ns", "width", NUMBER, None, np.float32),\n',
    ),
    (
        "events/dom_events.py",
        "    auxiliary: npt.NDArray[np.bool_]\n",
        "    width_ns: npt.NDArray[np.floating]\n",
    ),
    ("batches/event_batch.py", "    auxiliary: Tensor\n", "    width_ns: Tensor\n"),
)

PROGRAM = """
import sys

import numpy as np
import pyarrow.parquet as pq

from iceaggr.batches import collate
from iceaggr.config import BatchConfig
from iceaggr.detector import icecube86
from iceaggr.events.cleaning import Account, clean
from iceaggr.events.pulses import decode_pulses
from iceaggr.events.grouping import group_by_dom
from iceaggr.events.meta import EventTable
from iceaggr.events.pulses import PulseChunk
from iceaggr.shards.encoding import decode_shard, encode_shard

pulses = decode_pulses(pq.read_table(sys.argv[1]), sys.argv[1])
n = np.array([3, 5])
table = EventTable(np.array([1, 2]), n, np.ones(2), np.ones(2))
chunk = PulseChunk(0, 2, 0, pulses)
detector = icecube86()
events = group_by_dom(clean(chunk, table, detector, True, Account()), table, detector)
events = decode_shard(encode_shard(events), "shard")
assert events.width_ns.dtype == np.float64, events.width_ns.dtype
# one of the DOMs of the second event has more pulses than the cap lets through
batch = collate(events, np.arange(2), detector, BatchConfig(max_pulses_per_dom=2))
assert 0 < batch.n_pulses_dropped < 8
# width was written as ten times the time
assert np.array_equal(batch.width_ns.numpy(), 10 * batch.time_ns.numpy()), batch.width_ns
"""

RAW_FILE = """
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

time = np.array([7, 3, 5, 11, 2, 13, 17, 19])
pq.write_table(
    pa.table(
        {
            "event_id": np.repeat([1, 2], [3, 5]),
            "sensor_id": [4, 2, 4, 1, 1, 1, 9, 9],
            "time": time,
            "charge": np.ones(8),
            "auxiliary": np.zeros(8, bool),
            "width": 10.0 * time,
        }
    ),
    sys.argv[1],
)
"""


def run(program: str, raw_file: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, str(raw_file)],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_new_pulse_value_needs_three_lines_in_three_files(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "iceaggr", ignore=shutil.ignore_patterns("__pycache__"))
    raw_file = tmp_path / "batch_1.parquet"
    assert run(RAW_FILE, raw_file, tmp_path).returncode == 0
    before = run(PROGRAM, raw_file, tmp_path)
    assert "has no attribute 'width_ns'" in before.stderr
    for name, line, new_line in PLACES:
        path = tmp_path / "iceaggr" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(line) == 1, name
        path.write_text(text.replace(line, line + new_line), encoding="utf-8")
    after = run(PROGRAM, raw_file, tmp_path)
    assert after.returncode == 0, after.stderr
