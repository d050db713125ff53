"""Which heavy packages each step imports before it works: seconds of every pod's life."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = Path(__file__).parents[2] / "components" / "steps.py"
HEAVY = {"kfp", "kubernetes", "matplotlib", "mlflow", "scipy", "torch"}
# what a step works with; anything more is imported for nothing
NEEDED = {
    "plan_conversion": {"scipy", "torch"},  # it judges the labels by a line fit
    "convert_events": {"scipy", "torch"},
    "plan_shards": set(),
    "shard_events": set(),
    "compute_statistics": {"matplotlib", "scipy", "torch"},  # it fits a sample of events
    "check_learning": {"scipy", "torch"},
    "train_model": set(),  # it launches processes and follows them
    "train_on_machines": set(),  # it launches pods: with the client of Kubernetes, loaded then
    "evaluate_model": {"matplotlib", "scipy", "torch"},
    "promote_model": {"matplotlib", "mlflow", "scipy", "torch"},  # its card has pictures
    "close_run": set(),
}


FUNCTIONS = {
    node.name: node
    for node in ast.parse(STEPS.read_text()).body
    if isinstance(node, ast.FunctionDef)
}


def imports_of(step):
    """Give the imports in the body of a step, as the pod makes them."""
    found = [n for n in ast.walk(FUNCTIONS[step]) if isinstance(n, ast.Import | ast.ImportFrom)]
    return "\n".join(ast.unparse(node) for node in found)


def test_every_step_is_looked_at():
    assert set(FUNCTIONS) == set(NEEDED)


@pytest.mark.parametrize("step", NEEDED)
def test_step_imports_what_it_works_with_and_no_more(step):
    code = f"{imports_of(step)}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    assert "iceaggr" in code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded & HEAVY == NEEDED[step]
