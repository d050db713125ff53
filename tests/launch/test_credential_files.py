import pytest

from iceaggr.errors import ConfigError
from launch.credential_files import check_authority, read_credential
from launch.kfp_api import Connection, connect
from tests.launch.certificates import certificate

SECRET = "hunter2"


def test_read_credential_takes_the_line_without_its_end(tmp_path):
    (tmp_path / "token").write_text(f" {SECRET}=a; b=c \r\n\n")
    assert read_credential(tmp_path / "token", "--token-file") == f"{SECRET}=a; b=c"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"hunter2\nhunter2", "found 2 lines"),
        (b"# Netscape HTTP Cookie File\nkfp\tTRUE\t/\thunter2", "write NAME=VALUE; NAME=VALUE"),
        (b"hunter2\xff\xfe", "found other characters"),
        ("hunter2\u2026".encode(), "found other characters"),
        (b"hunter2\x00", "found other characters"),
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
