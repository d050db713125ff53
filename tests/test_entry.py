"""What the shell of a user does to every command: Ctrl-C at any moment, an old encoding."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
# Ctrl-C at the very moment at which a module is looked for
INTERRUPTING = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            del sys.meta_path[0]
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""
ICEAGGR = ["-m", "iceaggr"]


def run_python(arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess:
    (folder / "sitecustomize.py").write_text(INTERRUPTING, encoding="utf-8")
    # a shell that starts the tests in the background has Ctrl-C ignored, and hands that down
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder), "ICEAGGR_STATE_FOLDER": str(folder)}
        | variables,
        capture_output=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["pipeline.py", "run"], "yaml"),
        (["pipeline.py", "run"], "kfp"),
        (["pipeline.py", "run"], "launch.commands"),
        (["pipeline.py", "compile", "--output", "/dev/null"], "kfp.compiler.compiler"),
        ([*ICEAGGR, "--help"], "typer"),
        ([*ICEAGGR, "shard", "--help"], "pydantic"),
        ([*ICEAGGR, "simulate", "--out", "file:///dev/null/x", "--events", "5"], "pyarrow"),
        ([*ICEAGGR, "compare", "a", "b"], "mlflow"),
        (["-m", "iceaggr.cli", "simulate", "--out", "file:///dev/null/x", "--events=5"], "numpy"),
        (["-m", "iceaggr.local_services", "status"], "botocore"),
        (["-m", "iceaggr.tracking.unsent", "gone"], "mlflow"),
        (["-m", "manifests.objects", "pipeline", "/dev/null"], "kfp"),
        (["-m", "manifests.check", "/dev/null"], "kubernetes_validate"),
        (["-m", "manifests.objects", "image"], "yaml"),
        (["-m", "manifests.new_credentials"], "yaml"),
        (["benchmarks/ablations.py"], "torch"),
        (["benchmarks/large_run.py"], "numpy"),
    ],
)
def test_ctrl_c_during_the_imports_is_one_line(arguments, module, tmp_path):
    done = run_python(arguments, tmp_path, INTERRUPT_AT=module)
    assert done.stderr.decode() == "interrupted by Ctrl-C\n"
    assert done.stdout == b""
    assert done.returncode == 130


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_streams_write_a_question_mark_for_what_the_shell_cannot_show(encoding, tmp_path):
    code = "from iceaggr.entry import begin; begin(); print('1 σ, 9.0 °', flush=True)"
    done = run_python(
        ["-c", code], tmp_path, INTERRUPT_AT="", PYTHONIOENCODING=encoding, PYTHONUTF8="0"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding) == "1 σ, 9.0 °\n".encode(encoding, "replace").decode(
        encoding
    )


def test_ctrl_c_that_a_library_turns_into_an_error_of_its_own_is_one_line(tmp_path):
    code = """
import os, signal
from iceaggr.entry import begin, run
def command():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("initialization failed")
begin()
run(command)
"""
    done = run_python(["-c", code], tmp_path, INTERRUPT_AT="")
    assert (done.returncode, done.stderr) == (130, b"interrupted by Ctrl-C\n")


def test_command_that_ignores_ctrl_c_goes_on(tmp_path):
    code = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from iceaggr.entry import begin, run
begin()
run(lambda: os.kill(os.getpid(), signal.SIGINT))
"""
    done = run_python(["-c", code], tmp_path, INTERRUPT_AT="")
    assert (done.returncode, done.stderr) == (0, b"")


SOURCES = [
    path
    for folder in ("src", "launch", "components", "manifests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize(
    "path", [ROOT / "pipeline.py", *SOURCES], ids=lambda p: str(p.relative_to(ROOT))
)
def test_text_files_are_never_in_the_encoding_of_the_shell(path):
    """Ruff's rule sees calls of open and of a path that it knows to be one; others look alike."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and _is_text(call):
            named = {keyword.arg for keyword in call.keywords}
            assert "encoding" in named, f"{path}:{call.lineno}: without encoding"


def _is_text(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    constants = [a.value for a in call.args if isinstance(a, ast.Constant)]
    modes = [value for value in constants if value in ("r", "w", "a", "x", "r+", "w+", "a+")]
    as_text = any(k.arg == "text" and getattr(k.value, "value", 0) is True for k in call.keywords)
    if name in ("File", "format"):  # of HDF5, which is no text, and a word for a mode
        return False
    return name in ("read_text", "write_text") or bool(modes) or as_text


def test_ctrl_c_while_the_worker_processes_start_is_told_once(tmp_path):
    command = [sys.executable, "-m", "iceaggr", "simulate", "--out", tmp_path.as_uri()]
    simulation = subprocess.Popen(
        [*command, "--events", "50000", "--processes", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    watched = psutil.Process(simulation.pid)
    deadline = time.monotonic() + 120
    while not any("spawn_main" in str(child.cmdline()) for child in watched.children()):
        assert time.monotonic() < deadline
        assert simulation.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)  # both amid their imports
    os.killpg(simulation.pid, signal.SIGINT)
    _, errors = simulation.communicate(timeout=120)
    assert (simulation.returncode, errors) == (130, b"interrupted by Ctrl-C\n")
