import pytest

import pipeline
from components.image import EXAMPLE_IMAGE
from iceaggr.errors import ConfigError
from launch import commands
from launch.compilation import compile_pipeline


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
    warned = capsys.readouterr().err.startswith("warning: the steps have the image")
    assert warned == (image == EXAMPLE_IMAGE)
