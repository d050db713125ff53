"""Waiting for a server of the manifests, no longer than it lives."""

import time
import urllib.error
import urllib.request


class LostPortError(AssertionError):
    """Somebody took a port between our looking and the server's binding."""


def answers(url):
    """Tell whether an address answers well, asked without a proxy."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_until_well(process, url, log, within_s):
    """Wait until a server answers; fail at once, with its log, when it has ended."""
    deadline = time.monotonic() + within_s
    while not answers(url):
        told = log.read_text(errors="replace")[-2000:]
        if not process.is_alive():
            raise (LostPortError if "address already in use" in told.lower() else AssertionError)(
                told
            )
        assert time.monotonic() < deadline, told
        time.sleep(0.2)
