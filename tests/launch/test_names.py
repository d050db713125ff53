import pytest

from iceaggr.errors import ConfigError
from launch.names import check_image, check_namespace, check_service_account

DIGEST = "@sha256:" + "0" * 64


@pytest.mark.parametrize(
    "image",
    [
        "registry/iceaggr:7.1.0",
        "localhost:5000/ice/aggr:1.2-rc1",
        "ghcr.io/a-b/c__d.e:v1",
        f"registry.example.org/iceaggr{DIGEST}",
        f"registry.example.org/iceaggr:latest{DIGEST}",
    ],
)
def test_check_image_accepts_what_stays(image):
    check_image(image, "ICEAGGR_IMAGE")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("bad image!:1", "not an image reference"),
        ("registry/Iceaggr:1.0", "not an image reference"),
        ("registry/iceaggr@sha256:12", "not an image reference"),
        ("", "not an image reference"),
        ("registry/iceaggr", "moves with each build"),
        ("registry/iceaggr:latest", "moves with each build"),
        ("registry/iceaggr:1.2-latest", "moves with each build"),
    ],
)
def test_check_image_refuses_what_is_none_or_moves(image, message):
    with pytest.raises(ConfigError, match=rf"{message} .*ICEAGGR_IMAGE"):
        check_image(image, "ICEAGGR_IMAGE")


@pytest.mark.parametrize("name", ["Bad_NS!", "-a", "a.b", "a" * 64])
def test_check_namespace_refuses_what_kubernetes_would(name):
    with pytest.raises(ConfigError, match="not the name of a namespace"):
        check_namespace(name, "--namespace")


@pytest.mark.parametrize("name", ["bad name!", "a..b", "Runner", "a" * 254])
def test_check_service_account_refuses_what_kubernetes_would(name):
    with pytest.raises(ConfigError, match="not the name of a service account"):
        check_service_account(name, "--service-account")


def test_names_of_kubernetes_may_be_left_to_the_installation():
    for name in ("", "iceaggr-runner"):
        check_namespace(name, "--namespace")
        check_service_account(name, "--service-account")
