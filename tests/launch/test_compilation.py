import re

import pytest

import pipeline
from components.form import EXAMPLE_IMAGE
from iceaggr.config import parse_config
from iceaggr.errors import ConfigError
from launch import commands
from launch.compilation import (
    check_image,
    check_namespace,
    check_run_name,
    check_service_account,
    compile_pipeline,
    name_run,
)

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
        ("registry/iceaggr", "names no fixed version"),
        ("registry/iceaggr:latest", "names no fixed version"),
        ("registry/iceaggr:1.2-latest", "names no fixed version"),
    ],
)
def test_check_image_refuses_what_is_none_or_moves(image, message):
    with pytest.raises(ConfigError, match=rf"{message} .*ICEAGGR_IMAGE"):
        check_image(image, "ICEAGGR_IMAGE")


@pytest.mark.parametrize("name", ["Bad_NS!", "-a", "a.b", "a" * 64])
def test_check_namespace_refuses_what_kubernetes_would(name):
    with pytest.raises(ConfigError, match="invalid name of a namespace"):
        check_namespace(name, "--namespace")


@pytest.mark.parametrize("name", ["bad name!", "a..b", "Runner", "a" * 254])
def test_check_service_account_refuses_what_kubernetes_would(name):
    with pytest.raises(ConfigError, match="invalid name of a service account"):
        check_service_account(name, "--service-account")


def test_names_of_kubernetes_may_be_left_to_the_installation():
    for name in ("", "iceaggr-runner"):
        check_namespace(name, "--namespace")
        check_service_account(name, "--service-account")


@pytest.mark.parametrize(
    ("raw_uri", "events"),
    [
        ("s3://iceaggr/raw", "raw"),
        ("s3://iceaggr/raw/simulated-20000/", "simulated-20000"),
        ("file:///data/month 03 [new]", "month-03-new"),
        ("s3://b/a_very_long_name_of_a_folder", "a_very_long_name_o"),
    ],
)
def test_name_run_holds_what_tells_runs_apart(raw_uri, events):
    name = name_run(parse_config({"name": "laptop"}), raw_uri, "champion")
    assert re.fullmatch(rf"laptop-{re.escape(events)}-champion-\d{{4}}-\d{{6}}", name)
    check_run_name(name, "made")


@pytest.mark.parametrize("name", ["", "Tuesday's idea", "x" * 80])
def test_check_run_name_takes_what_people_write(name):
    check_run_name(name, "--run-name")


@pytest.mark.parametrize("name", ["a/b", ".hidden", "x" * 81, " ", "a\nb"])
def test_check_run_name_refuses_what_is_no_part_of_a_file_name(name):
    with pytest.raises(ConfigError, match=r"invalid name.*\[--run-name\]"):
        check_run_name(name, "--run-name")


def test_compile_pipeline_says_when_the_target_cannot_be_written(tmp_path):
    folder = tmp_path / "pipeline.yaml"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"cannot write the compiled pipeline .*Is a directory"):
        compile_pipeline(pipeline.make_pipeline(cluster=True), folder)


def test_compile_pipeline_overwrites_its_own_earlier_result_only(tmp_path):
    path, graph = tmp_path / "pipeline.yaml", pipeline.make_pipeline(cluster=True)
    first = compile_pipeline(graph, path).read_bytes()
    assert compile_pipeline(graph, path).read_bytes() == first
    for text in ("name: docker-compose\n", first.decode().replace(graph.name, "another")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"something else has this name \[--output"):
            compile_pipeline(graph, path)
        assert path.read_text() == text


def test_compile_pipeline_says_when_the_folder_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot write .*absent/p.yaml.*No such file"):
        compile_pipeline(pipeline.make_pipeline(cluster=True), tmp_path / "absent" / "p.yaml")


@pytest.mark.parametrize("image", [EXAMPLE_IMAGE, "registry/iceaggr:7.1.0"])
def test_compile_warns_of_the_example_image(monkeypatch, tmp_path, capsys, image):
    monkeypatch.setattr(commands, "IMAGE", image)
    monkeypatch.setattr(commands, "compile_pipeline", lambda made, output: output)
    monkeypatch.setattr(
        "sys.argv", ["pipeline.py", "compile", "--output", str(tmp_path / "p.yaml")]
    )
    with pytest.raises(SystemExit, match=r"^0$"):
        commands.main(lambda cluster: None)
    warned = capsys.readouterr().err.startswith("warning: the steps have the example")
    assert warned == (image == EXAMPLE_IMAGE)
