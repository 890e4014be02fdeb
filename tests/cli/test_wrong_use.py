"""Arguments that make no sense: one line that names what is allowed, and code 2."""

from __future__ import annotations

import pickle

import pytest
from helpers import COMMANDS, Evil, in_process, padim_edge, unchanged

FIT = ("fit", "{embedding}", "{photos}", "-o", "{new}")
RUN = ("run", "{model}", "{photos}")
EXPORT = ("export", "--weights", "random", "--image-size", "64", "-o", "{new}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bogus",), ["bogus", "padim-edge --help"]),
        (("--bogus",), ["--bogus"]),
        *(
            ((name,), ["Missing argument", f"padim-edge {name} --help"])
            for name in ("fit", "run", "eval", "inspect")
        ),
        *(((name, "--bogus"), ["--bogus", f"padim-edge {name} --help"]) for name in COMMANDS),
        (("inspect", "{model}", "--json"), ["--json"]),
        ((*FIT, "--preprocess", "half"), ["half", "whole, reference"]),
        ((*FIT, "--resize", "big"), ["big", "224x448"]),
        ((*FIT, "--resize", "32"), ["32", "at least 64x64"]),
        ((*FIT, "--resize", "0"), ["0", "224x448"]),
        ((*FIT, "--crop", "32"), ["32", "64x64"]),
        ((*FIT, "--crop", "-64"), ["-64"]),
        ((*FIT, "--interpolation", "cubist"), ["cubist", "lanczos, bicubic, bilinear, box"]),
        ((*FIT, "--covariance", "diagonal"), ["diagonal", "sample or ledoit-wolf"]),
        ((*FIT, "--constants", "int4"), ["int4", "float32, float16, int8"]),
        ((*FIT, "--preset", "bleached"), ["bleached", "reference, whitened, whitened-fine"]),
        ((*FIT, "--preset", "whitened"), ["channels of layer2", "padim-edge export --dims all"]),
        ((*FIT, "--preset", "whitened", "--eps", "1"), ["--eps 1", "--shrinkage"]),
        ((*FIT, "--preset", "whitened", "--grid", "fine"), ["fine", "224x448"]),
        ((*FIT, "--preset", "whitened", "--shrinkage", "most"), ["--shrinkage most", "auto"]),
        ((*FIT, "--preset", "whitened", "--shrinkage", "1"), ["--shrinkage 1", "auto"]),
        ((*FIT, "--preset", "whitened", "--shrinkage", "1e-300"), ["1e-300", "from 1e-06 to"]),
        (("fit", "{embedding}", "", "-o", "{new}"), ["empty name", "is not set"]),
        ((*FIT, ""), ["empty name", "is not set"]),
        ((*FIT, "--normal-dir", ""), ["empty name", "is not set"]),
        (("run", "{model}", ""), ["empty name", "is not set"]),
        (("eval", "{model}", ""), ["empty name", "is not set"]),
        ((*FIT, "--shrinkage", "0.1"), ["--shrinkage", "--preset whitened"]),
        ((*FIT, "--dims", "9"), ["--dims 9", "padim-edge export --dims all"]),
        ((*FIT, "--eps", "-1"), ["--eps -1"]),
        ((*FIT, "--eps", "nan"), ["--eps nan"]),
        ((*FIT, "--eps", "inf"), ["--eps inf"]),
        ((*FIT, "--eps", "small"), ["--eps"]),
        ((*FIT, "--sigma", "-1"), ["--sigma -1", "0 to 64"]),
        ((*FIT, "--sigma", "nan"), ["--sigma nan", "0 to 64"]),
        ((*FIT, "--sigma", "1000"), ["--sigma 1000", "0 to 64"]),
        ((*FIT, "--false-alarm-rate", "0"), ["--false-alarm-rate 0", "a number", "1 is needed"]),
        ((*FIT, "--false-alarm-rate", "1"), ["--false-alarm-rate 1", "a number", "1 is needed"]),
        ((*FIT, "--false-alarm-rate", "nan"), ["--false-alarm-rate nan", "1 is needed"]),
        ((*FIT, "--engine", "warp"), ["warp", "auto", "ort", "openvino"]),
        ((*FIT, "--threads", "-1"), ["--threads"]),
        ((*FIT, "--threads", "99999999999"), ["--threads"]),
        (
            (*FIT, "--covariance", "ledoit-wolf", "--save-moments", "{new}.npz"),
            ["ledoit-wolf", "no moments"],
        ),
        ((*RUN, "--engine", "warp"), ["warp", "auto", "ort"]),
        ((*RUN, "--batch", "0"), ["--batch", "1"]),
        ((*RUN, "--resume"), ["--resume", "--jsonl"]),
        ((*RUN, "--resume", "--jsonl", "-"), ["--resume", "--jsonl"]),
        ((*RUN, "--batch", "many"), ["--batch"]),
        ((*RUN, "--threads", "99999999999"), ["--threads"]),
        (("eval", "{model}", "{photos}", "--engine", "warp"), ["warp", "auto", "ort"]),
        (("eval", "{model}", "{photos}", "--batch", "-3"), ["--batch"]),
        (("bench", "{model}", "--engine", "warp"), ["warp", "auto", "ort"]),
        (("bench", "{model}", "--batch", "0"), ["--batch 0", "at least 1"]),
        (("bench", "{model}", "--batch", "1,x"), ["--batch 1,x", "integers with commas"]),
        (("bench", "{model}", "--batch", ""), ["--batch", "integers with commas"]),
        (("bench", "{model}", "--calls", "3"), ["--calls", "10"]),
        (("bench", "{model}", "--frame", "900"), ["--frame 900", "width x height", "1920x1080"]),
        (("bench", "{model}", "--frame", "0x5"), ["--frame 0x5", "1 to"]),
        (("bench", "{model}", "--frame", "8x6,"), ["--frame :", "width x height"]),
        (("bench", "{model}", "--frame", "8x6,8x6"), ["--frame 8x6,8x6", "once"]),
        (("bench", "{model}", "--pixel-format", "cmyk"), ["'cmyk'", "bgr, rgba"]),
        (("export", "--backbone", "resnet19", "-o", "{new}"), ["resnet19", "resnet18"]),
        (("export", "--backbone", "vgg11", "-o", "{new}"), ["vgg11", "--layers", "features.0"]),
        ((*EXPORT, "--layers", "layer9"), ["layer9", "--layers", "layer1"]),
        ((*EXPORT, "--layers", "fc"), ["fc", "--layers", "layer1"]),
        ((*EXPORT, "--layers", "layer1,layer1"), ["layer1,layer1", "twice"]),
        ((*EXPORT, "--layers", ""), ["--layers", "layer1"]),
        ((*EXPORT, "--dims", "0"), ["--dims 0", "448"]),
        ((*EXPORT, "--dims", "449"), ["--dims 449", "448"]),
        ((*EXPORT, "--dims", "-5"), ["--dims -5"]),
        ((*EXPORT, "--dims", "many"), ["--dims many", "integers with commas"]),
        ((*EXPORT, "--dims", "1,2"), ["--dims 1,2", "3 layers"]),
        ((*EXPORT, "--dims", "65,0,0"), ["--dims 65,0,0", "64,128,256"]),
        ((*EXPORT, "--dims", "0,0,0"), ["--dims 0,0,0"]),
        ((*EXPORT, "--image-size", "100"), ["100", "multiples of 32"]),
        ((*EXPORT, "--image-size", "0"), ["0"]),
        ((*EXPORT, "--image-size", "100000"), ["100000 is too large", "178,956,970 are allowed"]),
        ((*FIT, "--resize", "99999x99999"), ["99999x99999 is too large", "9,999,800,001 pixels"]),
        ((*EXPORT, "--image-size", "64x64x3"), ["64x64x3", "224x448"]),
        ((*EXPORT, "--seed", "-1"), ["--seed"]),
        ((*EXPORT, "--seed", "1" * 30), ["--seed"]),
        ((*EXPORT, "--channels", "{new}.none"), ["--channels", "No such file"]),
        ((*EXPORT, "--channels", "{photos}"), ["--channels", "directory"]),
        ((*EXPORT, "--channels", "{model}"), ["--channels", "text"]),
        ((*EXPORT, "--channels", "{list}", "--dims", "3"), ["--channels", "--dims"]),
        ((*EXPORT, "--channels", "{list}"), ["--channels", "999", "0 to 447"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_wrong_use(tmp_path, embedding_file, model_file, photos, arguments, words):
    (tmp_path / "list.txt").write_text("1, 2, 999")
    names = {
        "embedding": embedding_file,
        "model": model_file,
        "photos": photos,
        "new": tmp_path / "new.onnx",
        "list": tmp_path / "list.txt",
    }
    with unchanged(tmp_path):
        done = in_process(*(argument.format(**names) for argument in arguments))
    done.failed(2, *words)


def test_wrong_use_from_a_shell(model_file, photos):
    padim_edge("run", model_file).failed(2, "no images were given", "--files-from")
    padim_edge("run", model_file, photos, "--engine", "warp").failed(2, "warp", "auto", "ort")


def test_weights_that_are_none(tmp_path, good):
    import torch

    export = ("export", "--image-size", 64, "-o", tmp_path / "embedding.onnx", "--weights")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with (tmp_path / "evil.pth").open("wb") as stream:
        pickle.dump(Evil(tmp_path / "run by a pickle"), stream)
    cases = {
        tmp_path / "none.pth": "No such file",
        tmp_path: "directory",
        tmp_path / "text.pth": "not a file of torch weights",
        tmp_path / "empty.pth": "not a file of torch weights",
        tmp_path / "evil.pth": "not a file of torch weights",
        good[0]: "not a file of torch weights",
        tmp_path / "part.pth": "lacks",
        tmp_path / "list.pth": "no state dict",
    }
    with unchanged(tmp_path):
        for weights, reason in cases.items():
            in_process(*export, weights).failed(1, str(weights), reason)
