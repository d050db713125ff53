import json
import threading
import time

import pytest

from iceaggr.tracking.outbox import RECORDS, Outbox


class Server:
    """Takes records, or refuses them while it is away."""

    def __init__(self):
        self.received = []
        self.is_away = False
        self.n_refused = 0
        self.refused_once, self.refused_twice = threading.Event(), threading.Event()

    def send(self, records):
        if self.is_away:
            self.n_refused += 1
            (self.refused_twice if self.n_refused > 1 else self.refused_once).set()
            raise ConnectionError("away")
        self.received += records


def test_records_arrive_in_order(tmp_path):
    server = Server()
    outbox = Outbox(server.send, tmp_path)
    for i in range(1_000):
        outbox.put({"i": i})
    assert outbox.close(within_s=60) == 0
    assert [record["i"] for record in server.received] == list(range(1_000))
    assert not (tmp_path / RECORDS).exists()


def test_records_of_an_outage_follow_in_order(tmp_path):
    server = Server()
    server.is_away = True
    outbox = Outbox(server.send, tmp_path)
    for i in range(300):
        outbox.put({"i": i})
    assert outbox.flush(within_s=0.2) == 300
    assert server.refused_twice.wait(60)
    assert outbox.last_error == "away"
    server.is_away = False
    outbox.put({"i": 300})
    assert outbox.close(within_s=60) == 0
    assert [record["i"] for record in server.received] == list(range(301))


def test_server_that_is_away_is_left_alone_between_tries(tmp_path):
    server = Server()
    server.is_away = True
    outbox = Outbox(server.send, tmp_path)
    outbox.put({"i": 0})
    assert server.refused_once.wait(60)
    for i in range(200):  # logging goes on, but must not make it try more often
        outbox.put({"i": i})
    time.sleep(0.3)
    assert server.n_refused <= 2
    outbox.close(within_s=0)


def test_unsent_records_stay_in_the_file(tmp_path):
    server = Server()
    outbox = Outbox(server.send, tmp_path)
    outbox.put({"i": 0})
    assert outbox.flush(within_s=60) == 0
    server.is_away = True
    outbox.put({"i": 1})
    outbox.put({"i": 2})
    assert outbox.close(within_s=0.1) == 2
    lines = (tmp_path / RECORDS).read_text().splitlines()
    assert [json.loads(line)["i"] for line in lines] == [1, 2]


def test_put_after_close_is_refused(tmp_path):
    outbox = Outbox(Server().send, tmp_path)
    outbox.close(within_s=1)
    with pytest.raises(ValueError, match="the tracker is finished"):
        outbox.put({"i": 0})
