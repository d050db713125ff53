import base64
import subprocess
import sys
import time

import pytest

from tests.security.canary import PLANTED, CommandLines, files_below, leaks, spellings

SECRET = "canary/session+token==0a1b2c3d"


@pytest.mark.parametrize(
    "text",
    [
        f"found {SECRET}",
        "canary/session%2Btoken%3D%3D0a1b2c3d",
        "canary%2Fsession%2Btoken%3D%3D0a1b2c3d",
        r'{"token": "canary\/session+token==0a1b2c3d"}',
        *(base64.b64encode(f"{'u' * n}:{SECRET}!".encode()).decode() for n in range(4)),
    ],
)
def test_leaks_finds_a_secret_however_it_is_spelled(text):
    assert leaks([("place", text.encode())], {"token": SECRET}) == ["token in place"]


def test_leaks_finds_nothing_where_nothing_is():
    assert leaks([("place", b"canary"), ("other", b"")], PLANTED) == []
    assert all(len(form) > 12 for secret in PLANTED.values() for form in spellings(secret))


def test_command_lines_are_seen():
    with CommandLines() as lines:
        command = [sys.executable, "-c", "input()", "canary-argument"]
        with subprocess.Popen(command, stdin=subprocess.PIPE):
            until = time.monotonic() + 60
            while not seen(lines) and time.monotonic() < until:
                time.sleep(0.05)
    assert seen(lines)


def seen(lines):
    return leaks(lines.found(), {"it": "canary-argument"})


def test_files_below_insists_on_private_files_being_private(tmp_path):
    (tmp_path / "open").write_text("x")
    (tmp_path / "keys").write_text("x")
    (tmp_path / "keys").chmod(0o600)
    assert [name for name, _ in files_below(tmp_path, ("keys",))] == [str(tmp_path / "open")]
    (tmp_path / "keys").chmod(0o640)
    with pytest.raises(AssertionError, match="keys can be read by others"):
        list(files_below(tmp_path, ("keys",)))
