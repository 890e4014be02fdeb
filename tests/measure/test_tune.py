"""Tune: the front and its ties, what separation is measured on, and what survives a kill."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import command, in_process
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.detect.evaluation import Judged, evaluate_detector
from padim_edge.detect.report import intervals
from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.fit.fit import fit_detector
from padim_edge.images import dataset as folders
from padim_edge.images.batches import refuse
from padim_edge.images.dataset import Sample, train_images
from padim_edge.images.painted import paint
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure import tune as tuning
from padim_edge.measure import tune_candidates, tune_separation
from padim_edge.measure.camera import Camera
from padim_edge.measure.report import Latency
from padim_edge.measure.tune import Plan, Tuned, deploy, front, latencies, tied, tune
from padim_edge.measure.tune_candidates import (
    Candidate,
    Source,
    combine,
    exports,
    given,
    settings_of,
    usual_dims,
)
from padim_edge.measure.tune_separation import (
    Photos,
    Separation,
    gather,
    keep_examples,
    paintings,
    separate,
)
from padim_edge.measure.tune_state import FILE, Finished, State
from padim_edge.model.file import Model, read
from padim_edge.progress import silent
from padim_edge.runtime import engines
from padim_edge.runtime.cpu.ort import OrtEngine

CAMERA = Camera(640, 480)
FEWER = "from padim_edge.detect.report import intervals; intervals.REPLICATES = 100"


@pytest.fixture(scope="module", autouse=True)
def fewer() -> Iterator[None]:
    """A tenth of the bootstrap's replicates: they are most of the work here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "REPLICATES", 100)
        yield


@pytest.fixture(scope="module")
def whole_file(whole_embedding: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedding with all channels, under a name of its own. Read only."""
    return copied(whole_embedding, tmp_path_factory.mktemp("tune") / "small.onnx")


def copied(file: Path, target: Path) -> Path:
    target.write_bytes(file.read_bytes())
    return target


@pytest.fixture(scope="module")
def dataset(photos: Path) -> Photos:
    return gather(train_images(photos), folders.test_samples(photos), 0)


@pytest.fixture(scope="module")
def tuned(
    whole_file: Path, dataset: Photos, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tuned, list[str]]:
    """Three candidates that can be and one that cannot, and what was told."""
    work = tmp_path_factory.mktemp("work")
    told: list[str] = []
    plan = Plan(dataset, work, engine="ort", threads=1, camera=CAMERA, calls=10)
    return tune(candidates(whole_file), plan, tell=told.append), told


def candidates(file: Path) -> list[Candidate]:
    (source,) = given([file])
    return [
        Candidate(source, "", "reference", 500, "float16"),  # of 448 channels
        Candidate(source, "", "reference", 20, "float16"),
        Candidate(source, "", "reference", 6, "int8"),
        Candidate(source, "", "whitened", 8, "float16"),
    ]


# --- the front and its ties -----------------------------------------------------------------------


def test_the_front_is_that_of_a_plain_search():
    """From the fastest on, whatever separates better than all before; and what equals it."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        count = rng.integers(1, 9)
        times, values = rng.integers(0, 5, count).tolist(), rng.integers(0, 5, count).tolist()
        expected, best = set(), -1
        for moment in sorted(set(times)):
            here = max(v for t, v in zip(times, values, strict=True) if t == moment)
            if here > best:
                best = here
                expected.add((moment, here))
        found = front(times, values)
        assert found == [point in expected for point in zip(times, values, strict=True)]


def separation(draws: list[float]) -> Separation:
    metrics: dict[str, float | None] = dict.fromkeys(("pixel_auroc", "pro"))
    return Separation({"image_auroc": float(np.mean(draws)), **metrics}, {"image_auroc": draws})


def test_ties_are_of_the_paired_differences():
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(100):
        base, shift = rng.normal(0.8, 0.1, 200), rng.uniform(0, 0.03)
        one, other = base.tolist(), (base + shift + rng.normal(0, 0.005, 200)).tolist()
        ordered = sorted(a - b for a, b in zip(one, other, strict=True))
        # The quantiles of 200 values lie between neighbours: those decide, unless 0 is between.
        sides = {
            low <= 0 <= high
            for low, high in ((ordered[4], ordered[195]), (ordered[5], ordered[194]))
        }
        found = tied(separation(one), separation(other), "image_auroc")
        assert found in sides
        seen.add(found)
        # Each by itself, their intervals overlap widely: pairing is what tells them apart.
        assert min(one) < max(other)
    assert seen == {True, False}


def test_a_row_is_tied_with_the_fastest_of_the_front_that_it_cannot_be_told_from():
    rng = np.random.default_rng(2)
    base = rng.normal(0, 0.001, 200)
    levels = {"a": 0.7, "b": 0.7002, "c": 0.69, "d": 0.9, "e": 0.9001}
    source = Source("made up")
    good, frames = [], {}
    for place, (name, level) in enumerate(levels.items()):
        candidate = Candidate(dataclasses.replace(source, label=name, sha256=name), "", "x", 1, "y")
        noise = rng.normal(0, 0.001, 200)
        good.append(
            (candidate, Finished(candidate.key, "f", "s", 1, separation(
                (level + base + noise).tolist()
            )))
        )  # fmt: skip
        frames[candidate.key] = Latency(1.0 + place, 2.0, 3.0, 4.0)
    files = {candidate.key: Path("f") for candidate, _ in good}
    rows = tuning._rows(good[::-1], files, frames, frames, "image_auroc")
    assert [str(row.candidate).split(",")[0] for row in rows] == list(levels)
    values = {name: np.mean(of.separation.draws["image_auroc"]) for name, (_, of)
              in zip(levels, good, strict=True)}  # fmt: skip
    on_front = [name for name, best in zip(levels, itertools.accumulate(values.values(), max),
                strict=True) if values[name] == best]  # fmt: skip
    assert [name for name, row in zip(levels, rows, strict=True) if row.on_front] == on_front
    assert {"a", "d"} <= set(on_front)
    assert "c" not in on_front
    expected = {"a": None, "b": 1, "c": None, "d": None, "e": 4}
    assert [row.tied_with for row in rows] == [
        expected[name] if name in on_front else None for name in levels
    ]


def test_replicates_of_a_group_are_drawn_together_and_of_two_detectors_alike():
    labels = np.array([False] * 4 + [True] * 6)
    groups = np.array([0, 1, 2, 3, 4, 4, 4, 5, 5, 5])
    weights = np.concatenate(list(intervals._drawn(labels, groups)))
    for number in (4, 5):
        own = weights[:, groups == number]
        assert (own == own[:, :1]).all()
    assert (weights[:, 4] + weights[:, 7] == 2).all()
    assert (weights[:, :4].sum(axis=1) == 4).all()
    assert weights[:, 4].std() > 0.5

    def judged(scores: np.ndarray) -> Judged:
        samples = [Sample(Path(str(place)), "x") for place in range(10)]
        return Judged(samples, labels, scores, np.zeros((10, 2, 2), np.float32), [None] * 10, 0.5)

    scores = np.random.default_rng(0).random(10)
    one, other = (intervals.draws(judged(x), groups)["image_auroc"] for x in (scores, 2 * scores))
    assert np.array_equal(one, other)


# --- candidates -----------------------------------------------------------------------------------


def test_combinations_are_those_that_there_are(tmp_path, whole_file, embedding_file):
    chosen = copied(embedding_file, tmp_path / "chosen.onnx")
    sources = given([whole_file, chosen])
    found = [str(one) for one in combine(sources, (), ("reference", "whitened"), (), ("int8",))]
    assert found == [
        "small, reference 100, int8",
        "small, whitened, int8",
        "chosen, reference, int8",
    ]
    found = [str(one) for one in combine(sources[:1], ("int8",), ("reference",), (5, 9), ("int8",))]
    assert found == ["small int8, reference 5, int8", "small int8, reference 9, int8"]
    told: list[str] = []
    combine(sources, (), ("reference",), (5,), ("int8",), told.append)
    combine(sources, (), ("reference",), (), ("int8",), told.append)
    combine(sources[:1], (), ("whitened",), (5,), ("int8",), told.append)
    assert [line.count(str(chosen)) for line in told] == [1]
    assert "--preset reference is measured of that alone" in told[0]
    found = [str(one) for one in combine(sources, (), ("whitened",), (), ("int8",), told.append)]
    assert found == ["small, whitened, int8"]
    assert f"{chosen} are chosen already" in told[1]
    assert told[1].endswith("nothing is measured of that")
    with pytest.raises(UsageError, match=r"chosen\.onnx are chosen already.*--dims all"):
        combine(sources[1:], (), ("whitened", "whitened-fine"), (), ("int8",))
    several = exports(["a", "b"], [None, ("x", "y")], [(64, 64), (64, 96)], "default")
    assert [one.label for one in several[:4]] == ["a 64", "a 64x96", "a x+y 64", "a x+y 64x96"]
    assert len({one.key for one in combine(several, (), ("reference",), (), ("int8",))}) == 8
    assert [usual_dims(total) for total in (72, 448, 1792)] == [72, 100, 550]


def test_a_candidate_is_known_by_what_is_in_its_files(tmp_path, whole_file):
    moved = copied(whole_file, tmp_path / "other.onnx")
    one, other = (candidates(path)[1] for path in (whole_file, moved))
    assert str(one) != str(other)
    assert one.key == other.key
    assert len({one.key for one in candidates(whole_file)}) == 4
    with pytest.raises(UsageError, match="each once"):
        given([whole_file, moved])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sources": []}, "nothing to choose among"),
        ({"presets": ("none",)}, "--preset none: choose among reference, whitened"),
        ({"constants": ("int4",)}, "--constants int4: choose among"),
        ({"constants": ()}, "--constants names nothing: choose among"),
        ({"presets": ()}, "--preset names nothing: choose among reference"),
        ({"precisions": ("half",)}, "--precision half: choose among"),
        ({"dims": (0,)}, "--dims 0: at least 1"),
    ],
)
def test_what_cannot_be_combined_is_refused(whole_file, change, words):
    arguments = {
        "sources": given([whole_file]),
        "precisions": (),
        "presets": ("reference",),
        "dims": (),
        "constants": ("int8",),
    }
    with pytest.raises(UsageError, match=words):
        combine(**arguments | change)


def test_weights_of_a_file_are_of_one_backbone(tmp_path):
    with pytest.raises(UsageError, match="a file is of one backbone"):
        exports(["a", "b"], [None], [(64, 64)], str(tmp_path / "w.pth"))
    with pytest.raises(UsageError, match="No such file"):
        exports(["a"], [None], [(64, 64)], str(tmp_path / "w.pth"))


# --- the whole, with real defects -----------------------------------------------------------------


def test_separation_is_what_eval_says_of_the_same_file(tuned, dataset):
    done, _ = tuned
    assert len(done.rows) == 3
    for row in done.rows:
        with Detector(row.file, "ort") as detector:
            metrics = evaluate_detector(detector, dataset.samples, 8, refuse)
        for name, value in row.separation.metrics.items():
            assert value == getattr(metrics, name)
            low, high = row.separation.interval(name)
            assert low <= value <= high or value == pytest.approx(high, abs=0.02)
        assert row.bytes == row.file.stat().st_size


def test_one_that_fails_does_not_stop_the_rest(tuned):
    done, told = tuned
    ((candidate, reason),) = done.failed
    assert candidate.dims == 500
    assert "the layers have 448 channels" in reason
    assert len(told) == 4
    assert told[0].startswith("1/4 small, reference 500, float16: left out: ")
    assert "image AUROC" in told[1]


def test_rows_are_sorted_and_counted_by_latency(tuned):
    done, _ = tuned
    times = [row.frame.p50 for row in done.rows]
    assert times == sorted(times)
    assert [row.number for row in done.rows] == [1, 2, 3]
    assert [row.to_fastest for row in done.rows] == [one / times[0] for one in times]
    values = [done.value(row) for row in done.rows]
    assert [row.on_front for row in done.rows] == front(times, values)
    best = done.best()
    assert done.value(best) == max(values)
    assert done.best(times[0]) is done.rows[0]
    for row in done.rows:
        alike = [other for other in done.rows if other is not row
                 and tied(row.separation, other.separation, "image_auroc")]  # fmt: skip
        assert done.alike(row) == alike
    with pytest.raises(PadimEdgeError, match=r"the fastest is no. 1 \(.*\) with .* ms"):
        done.best(times[0] / 2)


def test_what_is_deployed_is_what_was_measured(tuned, tmp_path):
    done, _ = tuned
    row, output = done.rows[0], tmp_path / "out.onnx"
    measured = row.file.read_bytes()
    output.write_bytes(b"old")
    seen = set()
    deploy(row, done.plan, output, lambda *_: seen.add(output.read_bytes()))
    assert seen == {b"old"}  # written once, at the end
    assert output.read_bytes() == measured
    # Over itself, and of a plan that has not looked what runs here.
    own = dataclasses.replace(row, file=Path(shutil.copy(row.file, tmp_path / "own.onnx")))
    deploy(own, dataclasses.replace(done.plan, described=""), own.file)
    assert own.file.read_bytes() == measured
    lost = dataclasses.replace(row, file=tmp_path / "lost.onnx")
    with pytest.raises(PadimEdgeError, match=r"cannot read .*lost\.onnx, which was measured"):
        deploy(lost, done.plan, output)
    assert output.read_bytes() == measured


def test_the_json_is_of_its_schema(tuned):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(
        (Path(__file__).parents[2] / "docs" / "tune.schema.json").read_text(encoding="utf-8")
    )
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    done, _ = tuned
    for under in (None, 1e6, 1e-6):
        value = json.loads(json.dumps(done.to_json(under)))
        validator.validate(value)
        assert (value["chosen"] is None) == (under == 1e-6)
    value["candidates"][0]["frame"]["p50"] = "fast"
    assert list(validator.iter_errors(value))


def test_the_picture_shows_every_candidate_and_the_limit(tuned, tmp_path):
    pytest.importorskip("matplotlib")
    from padim_edge.measure.plots import draw_front

    done, _ = tuned
    with (tmp_path / "front.svg").open("wb") as stream:
        draw_front(done, "image AUROC", 12.5, stream, "svg")
    text = (tmp_path / "front.svg").read_text()
    words = [">1<", ">2<", ">3<", "12.5 ms", "front", "image AUROC", "640x480 bgr", done.date]
    assert [word for word in words if word not in text] == []


class Picky(OrtEngine):
    """An engine that refuses detectors of six channels, as TensorRT may refuse any."""

    name = "picky"

    def __init__(self, model: Model, *arguments: object) -> None:
        if len(model.backbone_info.channels) == 6:
            raise PadimEdgeError("six are too few")
        super().__init__(model, *arguments)


def test_one_engine_runs_all_that_are_compared(whole_file, dataset, tmp_path, monkeypatch):
    """What the one of auto refuses is left out, and not timed in the next engine."""
    table = {"picky": f"{__name__}:Picky", **engines.ENGINES}
    monkeypatch.setattr(engines, "ENGINES", table)
    plan = Plan(dataset, tmp_path, threads=1, camera=CAMERA, calls=10)
    done = tune(candidates(whole_file)[1:3], plan)
    assert (done.plan.engine, done.plan.fit_engine) == ("picky", "auto")
    assert done.to_json(None)["engine"] == "picky"
    assert done.plan.described.startswith("ONNX Runtime")
    assert [row.candidate.dims for row in done.rows] == [20]
    ((candidate, reason),) = done.failed
    assert (candidate.dims, reason) == (6, "six are too few")
    with pytest.raises(PadimEdgeError, match="unknown engine 'none'"):
        tune(candidates(whole_file), dataclasses.replace(plan, engine="none"))
    with pytest.raises(UsageError, match="no candidate"):
        tune([], plan)


# --- latency --------------------------------------------------------------------------------------


def test_a_machine_that_got_slower_in_between_favours_nobody(tuned, monkeypatch):
    done, _ = tuned
    files = {row.candidate.key: row.file for row in done.rows}
    runs = []

    def clock(contenders, calls, progress):
        """The first detector takes 10 ms, the others 20, and everything doubles each run."""
        slower = 2 ** len(runs)
        runs.append({name for name, _ in contenders})
        for call in contenders.values():
            call()
        return {
            who: [slower * (0.01 if who[0] == next(iter(files)) else 0.02)] * calls
            for who in contenders
        }

    monkeypatch.setattr(tuning, "interleave", clock)
    monkeypatch.setattr(tuning, "TOGETHER", 2)
    found, graphs = latencies(files, done.plan)
    assert [len(run) for run in runs] == [2, 2]
    assert [found[name].p50 for name in files] == pytest.approx([10, 20, 20])
    assert [graphs[name].p50 for name in files] == pytest.approx([10, 20, 20])


# --- state ----------------------------------------------------------------------------------------


def test_resuming_fits_only_what_is_not_there(tuned, whole_file, monkeypatch):
    done, _ = tuned
    fitted = []

    def counted(embedding, images, output, *arguments, **options):
        fitted.append(Path(output).name)
        return fit_detector(embedding, images, output, *arguments, **options)

    monkeypatch.setattr(tuning, "fit_detector", counted)
    told: list[str] = []
    some = candidates(whole_file)
    some[1].file_name and (done.plan.work / some[1].file_name).unlink()
    again = tune(some, done.plan, True, told.append)
    # The one that failed is tried again, and the one whose file is gone made again.
    assert fitted == [some[0].file_name, some[1].file_name]
    assert sum("as in the earlier run" in line for line in told) == 2
    before = {row.candidate.key: row.separation.metrics for row in done.rows}
    assert {row.candidate.key: row.separation.metrics for row in again.rows} == before


def test_what_was_finished_survives_a_kill(tmp_path, whole_file, photos):
    work = tmp_path / "work"
    arguments = ("tune", photos, "--embedding", whole_file, "--work", work, "--engine", "ort",
                 "--dims", "6,8,10", "--preset", "reference", "--constants", "float16",
                 "--threads", 1, "--calls", 30, "--frame", "640x480")  # fmt: skip
    with subprocess.Popen(command(*arguments, prelude=FEWER), stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and child.poll() is None:
            if (work / FILE).exists() and (work / FILE).read_bytes().count(b"\n") > 2:
                break
            time.sleep(0.01)  # of the search for a file, whatever the deadline
        child.send_signal(signal.SIGKILL)
    lines = (work / FILE).read_text().splitlines()
    finished = [json.loads(line) for line in lines][1:]
    assert finished
    done = in_process(*arguments, "--resume").worked()
    assert done.stderr.count("as in the earlier run") == len(finished)
    assert len((work / FILE).read_text().splitlines()) == 1 + 3
    assert not [path for path in work.iterdir() if path.name.startswith(".")]


def test_a_state_is_not_lost_nor_mixed(tmp_path):
    state = State.of(tmp_path, {"photos": "a", "engine": "ort"}, False)
    state.keep(Finished("k", error="why"))
    with pytest.raises(UsageError, match=r"1 finished candidate.* --resume"):
        State.of(tmp_path, state.conditions, False)
    with pytest.raises(UsageError, match="photos was a, now b"):
        State.of(tmp_path, {"photos": "b", "engine": "ort"}, True)
    assert State.of(tmp_path, state.conditions, True).finished == state.finished


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "none",
        '{"schema": 2, "conditions": {}}',
        '{"schema": 1, "conditions": {}}\n{"key": "k"}',
        '{"schema": 1, "conditions": {}}\n{"key": 1, "separation": null}',
        '{"schema": 1, "conditions": {}}\n{"key": "k", "separation": {"metrics": {}}}',
    ],
)
def test_a_file_that_is_no_state_is_refused_and_kept(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(PadimEdgeError, match="is no file of padim-edge tune"):
        State.of(tmp_path, {}, True)
    assert (tmp_path / FILE).read_text() == text


# --- without defects ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def painted(photos: Path) -> Photos:
    return gather(train_images(photos), (), 7)


def test_held_out_photos_are_not_fitted_on(painted, photos):
    assert len(painted.held_out) == 3
    assert not set(painted.held_out) & set(painted.good)
    assert list(painted.all_good) == train_images(photos)
    other = gather(train_images(photos), (), 8)
    assert other.digest != painted.digest
    assert other.held_out != painted.held_out
    assert gather(train_images(photos), (), 7) == painted
    sizes = {(kind, size) for _, kind, size, _ in paintings(painted)}
    assert len(sizes) == 9  # three photos: each kind in each size
    assert "promise nothing" in str(painted)


def test_good_scores_are_leave_one_out_and_defective_ones_of_held_out_photos(
    painted, whole_file, tmp_path, monkeypatch
):
    from sklearn.metrics import roc_auc_score

    candidate = candidates(whole_file)[1]
    model = read(whole_file, "embedding")
    plan = Plan(painted, tmp_path)
    settings = settings_of(candidate, model, plan.preprocess((64, 64)))
    fitted = fit_detector(model, painted.good, tmp_path / "p.onnx", settings)
    with Detector(tmp_path / "p.onnx", "ort") as detector:
        found = separate(detector, fitted, painted)
        bad = []
        for path, kind, size, seed in paintings(painted):
            pixels, mask = tune_separation._painted(
                path, kind, size, seed, plan.preprocess((64, 64))
            )
            assert mask.any()
            bad.append(detector(pixels).score)
        assert separate(detector, fitted, painted) == found
    scores = np.concatenate([fitted.scores, bad])
    labels = np.arange(len(scores)) >= len(painted.good)
    assert found.metrics["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert found.metrics["pixel_auroc"] is not None
    assert len(found.draws["image_auroc"]) == intervals.REPLICATES
    # The detector that is deployed is fitted on the held-out ones, too.
    row = tuning._rows(
        [(candidate, Finished(candidate.key, "p.onnx", "", 1, found))],
        {candidate.key: tmp_path / "p.onnx"},
        *({candidate.key: Latency(1.0, 1.0, 1.0, 1.0)} for _ in range(2)),
        "image_auroc",
    )[0]
    deploy(row, plan, tmp_path / "deployed.onnx")
    info = read(tmp_path / "deployed.onnx", "padim").detector_info
    assert info
    assert info.images == 12


def test_photos_too_few_for_a_basis_rank_nothing(painted, whole_file, tmp_path):
    plan = Plan(painted, tmp_path, engine="ort", camera=CAMERA, calls=10)
    with pytest.raises(PadimEdgeError, match="leave-one-out scores of this preset too low"):
        tune([candidates(whole_file)[3]], plan)


def test_what_cannot_be_read_is_left_out_for_all(photos, tmp_path, good):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    told = []
    found = gather([*good, broken], (), 0, lambda path, error: told.append((path, str(error))))
    assert [path for path, _ in told] == [broken]
    assert broken not in found.all_good
    with pytest.raises(PadimEdgeError, match="7 usable photos given: without defects"):
        gather(good[:7], (), 0)
    samples = folders.test_samples(photos)
    for kind in (False, True):
        own = [Sample(broken, "x" if kind else "good")]
        others = [one for one in samples if one.is_anomalous != kind]
        with pytest.raises(PadimEdgeError, match=f"no {'defective' if kind else 'good'} photo"):
            gather(good, own + others, 0, lambda *_: None)


def test_examples_are_kept_to_be_looked_at(painted, tmp_path):
    keep_examples(painted, Preprocess.choose((64, 64)), tmp_path / "painted")
    names = sorted(path.name for path in (tmp_path / "painted").iterdir())
    assert len(names) == 9
    assert names[0].startswith("patch-16-")


def test_defects_are_painted_onto_photos_of_the_bit_depth_that_is_said(tmp_path):
    """12 bits in files of 16: as bright as the detector takes them, not a sixteenth of it."""
    level = np.random.default_rng(0).integers(1500, 3500, (8, 40, 40), np.uint16)
    files = [tmp_path / f"{place}.png" for place in range(8)]
    for file, pixels in zip(files, level, strict=True):
        Image.fromarray(pixels).save(file)
    preprocess = Preprocess.choose((40, 40), bit_depth=12)
    found = gather(files, (), 0, bit_depth=12)
    keep_examples(found, preprocess, tmp_path / "painted")
    for kind in ("patch", "scratch", "stain"):
        (example,) = (tmp_path / "painted").glob(f"{kind}-*-0.png")
        shown = np.asarray(Image.open(example)).astype(float)
        # Most pixels of the photo are none of the defect.
        assert np.median(np.abs(shown - preprocess(found.held_out[0]))) <= 1


@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (64, 64), (10, 12)])
def test_defects_lie_where_the_graph_sees_them(tmp_path, shape):
    """Of a long photo the crop of `reference` leaves a third: a patch beside it is no defect."""
    file = tmp_path / "long.png"
    pixels = np.random.default_rng(0).integers(40, 200, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    for preset in ("reference", "whole"):
        preprocess = Preprocess.choose((64, 64), preset)
        for kind, seed in itertools.product(("patch", "scratch", "stain"), range(10)):
            painted, where = tune_separation._painted(file, kind, 0.16, (seed,), preprocess)
            assert np.array_equal((painted != pixels).any(axis=2), where)
            assert (preprocess(painted) != preprocess(pixels)).any()
            assert preprocess.mask(Image.fromarray(where)).any()
            if preset == "whole":
                expected = paint(pixels, kind, 0.16, (seed,))
                assert np.array_equal(painted, expected[0])


def test_every_candidate_is_compared_on_the_same_good_photos(photos, whole_file, tmp_path):
    """Whatever a fit finds equal or nearly so at its own size: replicates stay paired."""
    files = train_images(photos)
    twice = tmp_path / "twice.png"
    with Image.open(files[0]) as image:
        image.point([min(255, one + 1) for one in range(256)] * 3).save(twice)
    drawn = (gather([*files, twice], (), seed) for seed in itertools.count())
    found = next(one for one in drawn if {files[0], twice} <= set(one.good))
    assert found.parts == tuple(path for path in found.good if path != twice)
    plan = Plan(found, tmp_path)
    candidate = candidates(whole_file)[1]
    model = read(whole_file, "embedding")
    settings = settings_of(candidate, model, plan.preprocess((64, 64)))
    fitted = fit_detector(model, found.good, tmp_path / "p.onnx", settings)
    alone = dataclasses.replace(fitted, near=[])
    chained = dataclasses.replace(fitted, near=[list(fitted.paths[:3])])
    with Detector(tmp_path / "p.onnx", "ort") as detector:
        judged = [
            tune_separation._against_painted(detector, one, found, silent)
            for one in (alone, chained)
        ]
    assert [len(one.samples) for one, _ in judged] == [len(found.parts) + 9] * 2
    assert np.array_equal(judged[0][1], judged[1][1])


def test_what_was_made_in_other_conditions_is_not_taken(
    whole_file, dataset, painted, tmp_path, monkeypatch
):
    """A state that was removed leaves its int8 and exported embeddings in the folder."""
    made: list[tuple[Path, ...]] = []

    def quantise(model: Model, photos: tuple[Path, ...], *_: object) -> SimpleNamespace:
        made.append(photos)
        return SimpleNamespace(model=model)

    monkeypatch.setattr(tune_candidates, "quantise_embedding", quantise)
    one = dataclasses.replace(candidates(whole_file)[1], precision="int8")
    first, other = (Plan(photos, tmp_path) for photos in (dataset, painted))
    for plan in (first, first, other, dataclasses.replace(first, bit_depth=12), other):
        plan.opened(one, plan.preprocess((64, 64)))
    assert made == [dataset.good, painted.good, dataset.good]
    assert len(list(tmp_path.iterdir())) == 3
    exported = Source("x", backbone="resnet18", size=(64, 64), weights="random")
    names = []
    for plan in (first, other):
        with monkeypatch.context() as patch:
            patch.setitem(
                sys.modules,
                "padim_edge.export.export",
                SimpleNamespace(
                    export_backbone=lambda file, *_, **__: names.append(copied(whole_file, file))
                ),
            )
            plan.opened(
                dataclasses.replace(one, source=exported, precision=""), plan.preprocess((64, 64))
            )
    assert len(set(names)) == 2
