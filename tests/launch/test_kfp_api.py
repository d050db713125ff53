from types import SimpleNamespace

import pytest

from iceaggr.errors import ConfigError
from launch.kfp_api import (
    Connection,
    ServerAwayError,
    SubmissionError,
    check_authority,
    check_version,
    connect,
    read_credential,
    run_link,
    ui_address,
)
from tests.launch.certificates import certificate
from tests.launch.kfp_stand_in import KfpStandIn

SECRET = "hunter2"


def test_read_credential_takes_the_line_without_its_end(tmp_path):
    (tmp_path / "token").write_text(f" {SECRET}=a; b=c \r\n\n")
    assert read_credential(tmp_path / "token", "--token-file") == f"{SECRET}=a; b=c"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"hunter2\nhunter2", "found 2 lines"),
        (b"# Netscape HTTP Cookie File\nkfp\tTRUE\t/\thunter2", "as NAME=VALUE; NAME=VALUE"),
        (b"hunter2\xff\xfe", "found characters that"),
        ("hunter2\u2026".encode(), "found characters that"),
        (b"hunter2\x00", "found characters that"),
        (b" \n", "found nothing, expected one line"),
    ],
)
@pytest.mark.parametrize("option", ["token_file", "service_account_token_file", "cookies_file"])
def test_connect_refuses_what_no_header_can_hold_without_showing_it(
    server, tmp_path, content, found, option
):
    (tmp_path / "credential").write_bytes(content)
    with pytest.raises(ConfigError, match=found) as caught:
        connect(Connection(server.url, **{option: tmp_path / "credential"}))
    assert SECRET not in str(caught.value)
    assert caught.value.where == f"--{option.replace('_', '-')} {tmp_path / 'credential'}"
    assert server.requests == []


def test_check_authority_accepts_a_certificate(tmp_path):
    check_authority(certificate(tmp_path)[0], "--ca-file")


@pytest.mark.parametrize("text", ["", "hunter2", "-----BEGIN CERTIFICATE-----\nhunter2\n"])
def test_check_authority_refuses_a_file_without_certificate(tmp_path, text):
    (tmp_path / "ca.pem").write_text(text)
    with pytest.raises(ConfigError, match=r"file holds no certificate \[--ca-file /") as caught:
        check_authority(tmp_path / "ca.pem", "--ca-file")
    assert SECRET not in str(caught.value)


def written(path, text):
    path.write_text(text + "\n")
    return path


def test_connect_sends_the_token_of_the_file(server, tmp_path):
    server.required_headers = {"authorization": "Bearer secret-token"}
    connect(Connection(server.url, token_file=written(tmp_path / "token", "secret-token")))
    assert server.names("GET", "healthz")


def test_connect_reads_the_service_account_token_again_when_it_is_renewed(server, tmp_path):
    path = written(tmp_path / "token", "first")
    server.required_headers = {"authorization": "Bearer first"}
    client = connect(Connection(server.url, service_account_token_file=path))
    server.required_headers = {"authorization": "Bearer second"}
    written(path, "second")
    assert client.list_experiments().experiments is None


def test_connect_sends_the_cookies_of_the_file(server, tmp_path):
    server.required_headers = {"Cookie": "authservice_session=abc"}
    path = written(tmp_path / "cookies", "authservice_session=abc")
    connect(Connection(server.url, cookies_file=path))
    assert all(h["Cookie"] == "authservice_session=abc" for h in server.seen_headers)


def test_connect_says_what_to_give_when_the_server_asks_for_a_login(server):
    server.required_headers = {"authorization": "Bearer secret-token"}
    with pytest.raises(SubmissionError, match=r"HTTP 401: not allowed. Give a valid token"):
        connect(Connection(server.url))


def test_connect_never_shows_the_token_that_was_refused(server, tmp_path):
    server.required_headers = {"authorization": "Bearer right"}
    path = written(tmp_path / "token", "wrong-secret")
    with pytest.raises(SubmissionError, match=r"HTTP 403: not allowed. Ask for the rights") as info:
        connect(Connection(server.url, token_file=path))
    assert "wrong-secret" not in str(info.value)


def test_connect_recognises_a_login_page(server):
    server.login_page = True
    with pytest.raises(SubmissionError, match=r"asks for a login first .*text/html instead"):
        connect(Connection(server.url))


def test_connect_says_when_the_address_is_another_service(server):
    server.fail("GET", ".*/healthz", 404)
    with pytest.raises(SubmissionError, match=r"HTTP 404.*Is this the address of a Kubeflow"):
        connect(Connection(server.url))


def test_connect_says_when_the_server_is_out_of_order(server):
    server.fail("GET", ".*/healthz", 500)
    with pytest.raises(ServerAwayError, match="HTTP 500: made to fail"):
        connect(Connection(server.url))


def test_connect_says_when_nobody_listens():
    with pytest.raises(ServerAwayError, match=r"cannot be reached .*Connection refused"):
        connect(Connection("http://127.0.0.1:9"))


def test_connect_trusts_only_the_given_authority(tmp_path):
    path, tls = certificate(tmp_path)
    with KfpStandIn(tls) as server:
        with pytest.raises(ServerAwayError, match=r"CERTIFICATE_VERIFY_FAILED.*--ca-file"):
            connect(Connection(server.url))
        connect(Connection(server.url, ca_file=path))


def test_connect_asks_for_the_namespace_of_a_server_with_several_users():
    with KfpStandIn(multi_user=True) as server:
        with pytest.raises(ConfigError, match=r"--namespace.*expected the namespace of your"):
            connect(Connection(server.url))
        connect(Connection(server.url, namespace="ana"))


def test_connect_refuses_two_ways_of_authentication(tmp_path):
    token, cookies = written(tmp_path / "token", "a"), written(tmp_path / "cookies", "b")
    with pytest.raises(ConfigError, match="two ways of authentication: found --token-file, --coo"):
        connect(Connection("http://x", token_file=token, cookies_file=cookies))


@pytest.mark.parametrize("namespace", ["bea", "kubeflow"])
def test_connect_takes_the_given_namespace_over_a_remembered_one(tmp_path, namespace):
    (tmp_path / "context.json").write_text('{"namespace": "ana"}')
    with KfpStandIn(multi_user=True) as server:
        assert connect(Connection(server.url)).get_user_namespace() == "ana"
        client = connect(Connection(server.url, namespace=namespace))
        assert client.get_user_namespace() == namespace


def test_connect_finds_the_api_of_the_cluster_whatever_the_namespace_of_the_runs(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda: None)
    monkeypatch.setattr("kfp.Client._IN_CLUSTER_DNS_NAME", "http://127.0.0.1:9/{}")
    asked = []
    monkeypatch.setattr(
        "launch.kfp_api._Client.get_kfp_healthz",
        lambda self: asked.append(self._existing_config.host) or SimpleNamespace(multi_user=True),
    )
    assert connect(Connection(namespace="ana")).get_user_namespace() == "ana"
    assert asked == ["http://127.0.0.1:9/kubeflow"]


@pytest.mark.parametrize("text", ["{", "[]"])
def test_connect_names_a_context_that_is_damaged(server, tmp_path, text):
    (tmp_path / "context.json").write_text(text)
    with pytest.raises(ConfigError, match=r"cannot be read \[.*context\.json\].*Delete the file"):
        connect(Connection(server.url))


@pytest.mark.parametrize("option", ["token_file", "cookies_file", "ca_file"])
def test_connect_names_a_file_that_is_missing(tmp_path, option):
    with pytest.raises(ConfigError, match=r"file not found \[--.* /.*/absent\]"):
        connect(Connection("http://x", **{option: tmp_path / "absent"}))


def test_run_link_points_to_the_page_of_the_run():
    assert run_link("https://kfp", "1") == "https://kfp/#/runs/details/1"


@pytest.mark.parametrize(
    ("host", "ui", "found"),
    [
        ("https://kubeflow.example.org/pipeline/", "", "https://kubeflow.example.org/pipeline"),
        ("http://127.0.0.1:8888", "https://kfp/", "https://kfp"),
        ("http://127.0.0.1:8888", "", ""),
        ("http://ml-pipeline.kubeflow.svc.cluster.local:8888", "", ""),
        ("", "", ""),
    ],
)
def test_ui_address_is_never_that_of_the_api_server(host, ui, found):
    assert ui_address(Connection(host), ui) == found


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8080", "ftp://kfp.example.org", "http://", "ana:hunter2@kfp", "HTTP://kfp:8080"],
)
def test_connect_needs_the_scheme_of_the_address(host):
    with pytest.raises(ConfigError, match=r"not an address.*Write http:// or https://") as caught:
        connect(Connection(host))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("field", ["tag_name", "apiServerTagName"])
@pytest.mark.parametrize("tag", ["2.17.0", "v2.18.1", "2.17.0-rc.1"])
def test_check_version_takes_what_was_proved_and_newer(server, field, tag):
    server.health = {"tag_name": "unknown", field: tag}
    assert check_version(connect(Connection(server.url)), accept_older=False) == ""


def test_check_version_refuses_an_older_server_unless_it_is_accepted(server):
    server.health = {"tag_name": "2.16.1"}
    client = connect(Connection(server.url))
    with pytest.raises(ConfigError, match=r"too old .*found 2\.16\.1, expected 2\.17 or newer"):
        check_version(client, accept_older=False)
    assert "older than 2.17; you accepted that" in check_version(client, accept_older=True)


@pytest.mark.parametrize("health", [{}, {"tag_name": "unknown"}, {"tag_name": "dev-abc"}])
def test_check_version_says_when_the_server_does_not_tell_it(server, health):
    server.health = health
    words = check_version(connect(Connection(server.url)), accept_older=False)
    assert words.startswith("the server does not report its version")


def test_check_version_says_when_a_major_version_was_never_tried(server):
    server.health = {"tag_name": "3.0.0"}
    words = check_version(connect(Connection(server.url)), accept_older=False)
    assert "3.0.0 is untested" in words
