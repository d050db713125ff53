"""One name of the image in all places; `make manifests` changes it everywhere."""

import re

import pytest
import yaml

from manifests.check import problems
from manifests.objects import main, renamed, run_namespace
from tests.manifests.rendering import OVERLAYS, render


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_renamed_changes_image_and_namespace_everywhere(overlay):
    before = render(overlay)
    old = run_namespace(before)
    image = "registry.icecube.example/iceaggr@sha256:" + "0" * 64
    after = renamed(before, image, "physics")
    text = yaml.safe_dump(after)
    assert "registry.example.org" not in text
    assert image in text
    assert not re.search(rf"(namespace|metadata\.name|RUN_NAMESPACE): {old}$", text, re.MULTILINE)
    assert f".{old}.svc" not in text
    assert run_namespace(after) == "physics"
    assert [problem for document in after for problem in problems(document)] == []
    assert [d["metadata"]["name"] for d in after] == [d["metadata"]["name"] for d in before]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_renamed_changes_nothing_that_is_not_asked_for(overlay):
    assert renamed(render(overlay), "", "") == render(overlay)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--namespace", 'a"b'], "invalid name of a namespace [--namespace]"),
        (["--image", "a/b:latest"], "the tag of the image names no fixed version [--image]"),
        (["--namespace", "physics"], "no ConfigMap iceaggr-schedule"),
    ],
)
def test_main_leaves_the_file_alone_when_it_cannot_rename(tmp_path, options, message):
    path = tmp_path / "objects.yaml"
    path.write_text("kind: ConfigMap\nmetadata: {name: a}\n")
    with pytest.raises(SystemExit) as ended:
        main(["rename", str(path), *options])
    assert str(ended.value).startswith("error: ")
    assert message in str(ended.value)
    assert path.read_text() == "kind: ConfigMap\nmetadata: {name: a}\n"
