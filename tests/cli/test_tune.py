"""`padim-edge tune` as it is typed: the table, the answer, the files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import blocking, in_process, padim_edge, unchanged

from padim_edge.cli import tune
from padim_edge.detect.report import intervals
from padim_edge.images.dataset import Folders
from padim_edge.model.file import read
from padim_edge.model.metadata import INT8_TARGETS


@pytest.fixture(scope="module", autouse=True)
def fewer() -> Iterator[None]:
    """A tenth of the bootstrap's replicates: they are most of the work here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "REPLICATES", 100)
        yield


QUICK = ("--engine", "ort", "--threads", 1, "--calls", 30, "--frame", "640x480")


@pytest.fixture(scope="module")
def small(whole_embedding: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedding with all channels, under a name of its own. Read only."""
    path = tmp_path_factory.mktemp("tune") / "small.onnx"
    path.write_bytes(whole_embedding.read_bytes())
    return path


def test_a_data_set_in_one_command(tmp_path, small, photos):
    work, output = tmp_path / "work", tmp_path / "padim.onnx"
    done = in_process(
        *("tune", photos, "--embedding", small, *QUICK, "--preset", "reference", "--dims", "8,70"),
        *("--constants", "float16", "--work", work, "--json", tmp_path / "t.json"),
        *("--under", 1e6, "-o", output),
    ).worked()
    value = json.loads((tmp_path / "t.json").read_text())
    assert value["photos"]["kind"] == "data set"
    assert "measured on 4 good and 6 defective ones of the data set" in done.stdout
    assert len(value["candidates"]) == 2
    (best,) = [one for one in value["candidates"] if one["number"] == value["chosen"]]
    top = max(one["metrics"]["image_auroc"] for one in value["candidates"])
    assert best["metrics"]["image_auroc"] == top
    assert f"best in 1e+06 ms or less: no. {best['number']}, {best['name']}" in done.stdout
    assert output.read_bytes() == Path(best["file"]).read_bytes()
    assert value["engine"] == "ort"
    assert f"engine ort: {value['engine_description']}\n" in done.stdout
    assert value["engine_description"].startswith("ONNX Runtime ")
    # What `fit` says of the photos, once: twelve are too few for a rate of 1 %.
    assert len([line for line in done.warnings() if "12 images are too few for a f" in line]) == 1
    lines = done.stdout.splitlines()
    for one in value["candidates"]:
        (line,) = [line for line in lines if line.startswith(one["name"])]
        assert f"{one['frame']['p50']:.2f}" in line
        assert f"{one['metrics']['image_auroc']:.4f}" in line
        mark = line.split()[-1]
        if one["tied_with"]:
            assert mark == f"={one['tied_with']}"
        else:
            assert (mark == "*") == one["front"]

    # Once more, from what is there: an impossible limit is one line, and nothing is written.
    output.unlink()
    again = in_process(
        *("tune", photos, "--embedding", small, *QUICK, "--preset", "reference", "--dims", "8,70"),
        *("--constants", "float16", "--work", work, "--json", tmp_path / "t.json"),
        *("--under", 1e-6, "-o", output, "--resume"),
    )
    said = ("separation: ", "1/2 ", "2/2 ", "2 candidate(s)")
    line = again.failed(1, "nothing here decides in 1e-06 ms or less", "no. 1 (", said=said)
    value = json.loads((tmp_path / "t.json").read_text())
    assert value["chosen"] is None
    assert f"with {value['candidates'][0]['frame']['p50']:.2f} ms" in line
    assert not output.exists()
    assert again.stderr.count("as in the earlier run") == 2


def test_good_photos_alone(tmp_path, small, mine):
    done = in_process(
        *("tune", mine, "--embedding", small, *QUICK, "--preset", "reference,whitened"),
        *("--constants", "int8", "--work", tmp_path / "work", "-o", tmp_path / "padim.onnx"),
        *("--by", "pro", "--json", tmp_path / "t.json", "--plot", tmp_path / "t.svg"),
    ).worked()
    assert "leave-one-out scores of 9 good photos against 9 synthetic defects" in done.stdout
    assert "promise nothing of real defects" in done.stdout
    assert any("whitened" in line and "too low to rank it" in line for line in done.warnings())
    value = json.loads((tmp_path / "t.json").read_text())
    assert value["photos"]["kind"] == "synthetic"
    assert [one["preset"] for one in value["candidates"]] == ["reference"]
    assert len(value["failed"]) == 1
    info = read(tmp_path / "padim.onnx", "padim").detector_info
    assert info
    assert info.images == 12
    assert len(list((tmp_path / "work" / "painted").iterdir())) == 9
    assert b"<svg" in (tmp_path / "t.svg").read_bytes()


def test_a_test_set_may_be_passed_over(photos, good):
    found, samples = tune._photos(str(photos), Folders(), synthetic=False)
    assert (found, len(samples)) == (good, 10)
    assert tune._photos(str(photos), Folders(), synthetic=True) == (good, [])
    assert tune._photos(str(good[0].parent), Folders(), synthetic=False) == (good, [])


def test_a_backbone_is_exported_on_the_way_and_made_int8(tmp_path, photos):
    pytest.importorskip("torch")
    done = in_process(
        *("tune", photos, "--backbone", "resnet18", "--weights", "random", "--image-size", "32"),
        *("--layers", "layer1,layer2", "--preset", "reference", "--constants", "float16"),
        *("--precision", "int8", "--dims", 10, *QUICK, "--work", tmp_path / "work"),
    ).worked()
    assert "RANDOM weights" in done.stderr
    assert "resnet18 RANDOM layer1+layer2 32 int8, reference 10, float16" in done.stdout
    made = {path.name for path in (tmp_path / "work").glob("*.onnx")}
    assert len(made) == 3  # exported, made int8, and fitted
    assert any("int8-cpu" in name for name in made)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["nothing to choose among", "--embedding FILE", "--backbone NAME"]),
        (("--embedding", "{small}", "--by", "speed"), ["--by speed", "image-auroc, pixel-auroc"]),
        (("--embedding", "{small}", "--under", "0"), ["--under 0", "a positive number"]),
        (("--embedding", "{small}", "--under", "nan"), ["--under nan", "a positive number"]),
        (("--embedding", "{small}", "--preset", "x"), ["--preset x", "whitened-fine"]),
        (("--embedding", "{small}", "--dims", "x"), ["--dims x", "integers"]),
        (("--embedding", "{small}", "--for", "npu"), ["--for npu", "cpu, openvino, tensorrt"]),
        (("--embedding", "{small}", "--plot", "a.gif"), ["a.gif", ".png"]),
        (("--embedding", "{small}", "--engine", "warp"), ["warp"]),
        (("--embedding", "{small}", "--image-size", "64"), ["of a --backbone"]),
        (("--embedding", "{small}", "-o", "{small}"), ["must be different files"]),
        (("--embedding", "{small}", "--frame", "wide"), ["--frame wide", "width x height"]),
        (("--embedding", "{small}", "--preprocess", "hole"), ["'hole'", "whole, reference"]),
        (("--embedding", "{small}", "--bit-depth", "11"), ["11", "10, 12, 14"]),
        (("--embedding", "{small}", "--constants", ","), ["--constants names nothing"]),
        (
            ("--embedding", "{chosen}", "--preset", "whitened"),
            ["{chosen}", "chosen already", "--dims all"],
        ),
        (("--backbone", "resnet81"), ["unknown backbone 'resnet81'"]),
        (("--backbone", "resnet18", "--image-size", "64,100"), ["--image-size 100x100", "32"]),
    ],
)
def test_wrong_use_is_refused_before_any_work(
    tmp_path, small, embedding_file, photos, arguments, words
):
    names = {"small": small, "chosen": embedding_file}
    given = [str(one).format(**names) for one in arguments]
    if "--backbone" in given:
        pytest.importorskip("torch")
    with unchanged(tmp_path):
        done = in_process("tune", photos, "--work", tmp_path / "work", *given)
        broken = tmp_path / "none" / "padim.onnx"
        lost = in_process("tune", photos, "--embedding", small, "-o", broken)
    done.failed(2, *(word.format(**names) for word in words))
    lost.failed(1, f"cannot write {broken}")


def test_an_int8_candidate_is_the_detector_that_fit_makes(tmp_path, small, photos):
    """Its channels are drawn before; and a runtime that it was not made for is told of."""
    options = ("--preset", "reference", "--dims", 8, "--precision", "int8", "--for", "tensorrt")
    done = in_process(
        *("tune", photos, "--embedding", small, *QUICK, *options, "--constants", "float16"),
        *("--work", tmp_path / "work", "-o", tmp_path / "tuned.onnx"),
    ).worked()
    assert any("was made for tensorrt" in line for line in done.warnings())
    own = tmp_path / "fitted.onnx"
    in_process("fit", small, photos, *options, "--engine", "ort", "-o", own).worked()
    assert (tmp_path / "tuned.onnx").read_bytes() == own.read_bytes()


def test_a_data_set_without_masks_has_no_pixel_metric(tmp_path, small, photos):
    bare = tmp_path / "bare"
    for part in ("train", "test"):
        (bare / part).parent.mkdir(exist_ok=True)
        (bare / part).symlink_to(photos / part)
    done = in_process("tune", bare, "--embedding", small, "--by", "pro", "--work", tmp_path / "w")
    done.failed(2, "--by pro", "has no masks")
    assert not (tmp_path / "w").exists()


def test_missing_packages_are_named(tmp_path, small, photos):
    for packages, options, extra in (
        (("sklearn", "scipy"), ("--embedding", small), "eval"),
        (("torch",), ("--backbone", "resnet18"), "export,cpu"),
    ):
        done = padim_edge(
            "tune", photos, *options, "--work", tmp_path / "work", prelude=blocking(*packages)
        )
        done.failed(1, packages[0].replace("sklearn", "scikit-learn"), f"padim-edge[{extra}]")
    assert not (tmp_path / "work").exists()


def test_targets_are_those_of_the_quantiser():
    quantise = pytest.importorskip("padim_edge.runtime.quantise")
    assert tuple(quantise.TARGETS) == INT8_TARGETS
