import socket

import pytest

from iceaggr.errors import ServiceError
from iceaggr.local_services import ports
from iceaggr.local_services.ports import LOOPBACK, choose_ports, is_free


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_wanted_port_is_kept_when_free(taken_port):
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        free = probe.getsockname()[1]
    assert choose_ports({"a": free}) == {"a": free}


def test_other_port_is_chosen_when_taken(taken_port):
    chosen = choose_ports({"a": taken_port, "b": 0})
    assert taken_port not in chosen.values()
    assert all(is_free(port) for port in chosen.values())


def test_names_get_different_ports_when_they_want_the_same(taken_port):
    chosen = choose_ports(dict.fromkeys("abcd", 0))
    assert len(set(chosen.values())) == 4


def test_no_free_port_is_an_error(monkeypatch):
    monkeypatch.setattr(ports, "is_free", lambda port: False)
    with pytest.raises(ServiceError, match=r"no free port for s3 .*: found 200 ports"):
        choose_ports({"s3": 8333})
