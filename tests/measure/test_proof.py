"""`padim-edge doctor --gpu`: rehearsed over the fake GPU, and made to fail in every way it names.

The whole command runs as a user types it, its child processes too, without torch, pytest and the
packages of eval; see `rehearsal`.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import rehearsal
from helpers import Outcome, in_process, padim_edge

from padim_edge.errors import PadimEdgeError
from padim_edge.measure import proof
from padim_edge.measure.proof import CHECKS, Check, Proof, prove
from padim_edge.measure.proof_detectors import random_images, worst, write_detector
from padim_edge.measure.proof_endurance import _grown, _throttled
from padim_edge.measure.proof_engines import FRAMES, TOLERANCES
from padim_edge.measure.proof_line import ENGINES, PRESETS, Line, Sizes, Spec, benchmarked, compared
from padim_edge.processes import Done
from padim_edge.runtime.engines import open_engine

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "proof.schema.json").read_text())
MOST_BYTES = 30_000

REHEARSED = PRESETS[:1]
"""By every `make test`; the others take more than a minute, and are left to `make fuzz`."""

Run = Callable[..., tuple[Outcome, dict[str, Any]]]


@pytest.fixture(scope="module")
def rehearse(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the command over the fake GPU, its sizes small; returns what it left and its report."""
    environment = rehearsal.stage(tmp_path_factory.mktemp("rehearsal"), folder)

    def run(
        *only: str,
        fault: str = "",
        engines: tuple[str, ...] = ENGINES,
        presets: tuple[str, ...] = PRESETS,
        every: bool = False,
    ) -> tuple[Outcome, dict[str, Any]]:
        file = tmp_path_factory.mktemp("report") / "report.json"
        done = padim_edge(
            *("doctor", "--gpu", "--json", file),
            prelude=rehearsal.SIZES.format(only=only, engines=engines, every=every),
            env=environment | {rehearsal.FAULT: fault, rehearsal.PRESETS: " ".join(presets)},
            timeout=900,
        )
        assert "Traceback" not in done.stderr
        report = json.loads(file.read_text()) if file.exists() else {}
        if report:
            jsonschema.Draft202012Validator(SCHEMA).validate(report)
        return done, report

    return run


@pytest.fixture(scope="module")
def whole(rehearse: Run) -> tuple[Outcome, dict[str, Any]]:
    """All checks, of one preset; engines run detectors of each type, not of each pair of types."""
    done, report = rehearse(presets=REHEARSED)
    return done.worked(), report


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["status"] for one in report["lines"]}


# --- the rehearsal --------------------------------------------------------------------------------


def passes(report: dict[str, Any], presets: tuple[str, ...]) -> None:
    found = statuses(report)
    assert report["holds"]
    assert set(found.values()) == {"pass", "absent"}
    for name in ("GPU", "compiler", "TensorRT", "resize", "prepare"):
        assert found[name] == "pass"
    for engine in ENGINES:
        for preset in presets:
            assert found[f"{engine} tiny {preset}"] == "pass"
            if engine == "trt" or preset == "reference":
                assert found[f"{engine} tiny {preset} float16/float16"] == "pass"
        for what in ("opened and closed", "in two processes", "at SIGTERM", "under load"):
            assert found[f"{engine} {what}"] == "pass"
        assert found[f"{engine} energy"] == "absent"
    for preset in presets:
        for constants in ("float32", "float16", "int8"):
            assert found[f"tiny {preset} {constants}"] == "pass"


def test_the_whole_command_passes(whole):
    passes(whole[1], REHEARSED)


@pytest.mark.fuzz
def test_every_preset_passes(rehearse):
    done, report = rehearse()
    done.worked()
    passes(report, PRESETS)


@pytest.mark.fuzz
def test_every_type_of_a_backbone_passes_with_every_type_of_constants(rehearse):
    done, report = rehearse("gpu", "parity", "speed", every=True)
    done.worked()
    found = statuses(report)
    assert report["holds"]
    for engine, preset in itertools.product(ENGINES, PRESETS):
        assert found[f"{engine} tiny {preset}"] == "pass"
        assert found[f"{engine} tiny {preset} float16/float16"] == "pass"


def test_every_check_of_the_table_left_a_line(whole, monkeypatch):
    done, report = whole
    areas = {check.area for check in CHECKS}
    assert {one["area"] for one in report["lines"]} == areas
    monkeypatch.setattr(proof, "PRESETS", REHEARSED)
    cases = sum(len(list(check.cases(Sizes(networks=("tiny",))))) for check in CHECKS)
    assert f"[{cases}/{cases}] " in done.stderr


def test_the_report_says_that_the_device_was_none(whole):
    _, report = whole
    assert report["device"] == "Fake GPU (sm_87)"
    assert report["full"] is False
    assert report["sizes"]["networks"] == ["tiny"]


def test_the_text_has_every_line_of_the_report(whole):
    done, report = whole
    for one in report["lines"]:
        assert f"  {one['status']:<8} {one['name']}: {one.get('detail', '')}" in done.stdout
    assert done.stdout.count("\n  ") == len(report["lines"])
    counts = report["counts"]
    last = done.stdout.splitlines()[-1]
    assert last.startswith("Fake GPU (sm_87), ")
    assert last.endswith(f": {counts['pass']} pass, {counts['absent']} absent")


def test_figures_are_those_of_the_real_parts(whole):
    _, report = whole
    lines = {one["name"]: one["figures"] for one in report["lines"]}
    assert 0 < lines["tiny reference float16"]["errors"]["float32"] < 1e-5
    assert lines["prepare"]["wrong"] == {}
    assert lines["resize"]["wrong"] == 0
    for engine, kinds in {"trt": 3, "trt/graph": 3, "ort-cuda": 2}.items():
        errors = lines[f"{engine} tiny reference"]["errors"]
        assert len(errors) == kinds
        assert all(0 < error < 1e-5 for error in errors.values())
    timed = lines["trt tiny reference float16/float16"]
    assert list(timed["batches"]) == ["1", "3"]
    for stage in ("graph", "upload", "backbone", "distances", "smoothing", "download", "frame"):
        assert len(timed["batches"]["1"][stage]) == 3
    assert timed["device_bytes"] > 0
    assert lines["trt at SIGTERM"]["exit_code"] == 130
    assert min(lines["trt in two processes"]["frames"]) > 0


def test_a_full_report_can_be_pasted(whole):
    """From the bytes of the rehearsal's lines and the number of lines that a full one has."""
    _, report = whole
    kept: defaultdict[str, list[float]] = defaultdict(list)
    for one in report["lines"]:
        # At three batch sizes, not two, or one.
        more = {"speed": 1.5, "kernels": 1.2}.get(one["area"], 1.0)
        kind = one["name"] if one["name"] in ("prepare", "resize") else one["area"]
        kept[kind].append(more * len(json.dumps(one, separators=(",", ":"))))
    networks = len(Sizes().networks)
    lines = {
        "device": 16,
        "kernels": networks * len(PRESETS) * 3,
        "prepare": 1,
        "resize": 1,
        "parity": networks * len(PRESETS) * len(ENGINES),
        "speed": sum(len(benchmarked(Sizes(), x, y)) for x in ENGINES for y in Sizes().networks),
        "endurance": 15,
    }
    assert lines.keys() == kept.keys()
    size = sum(count * sum(kept[kind]) / len(kept[kind]) for kind, count in lines.items())
    assert size < MOST_BYTES


def test_bench_sets_it_beside_the_predictions(whole, tmp_path):
    _, report = whole
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    done = in_process("bench", "--roofline", "--measured", file).worked()
    rows = done.stdout.splitlines()
    assert rows[0].startswith("MEASURED on Fake GPU (sm_87) (")
    assert "NOT in full sizes" in rows[0]
    head = next(row for row in rows if row.startswith("batch 3"))
    for device in ("Orin Nano 8GB Super", "Orin NX 16GB", "AGX Orin 64GB", "Thor T5000"):
        assert device in head
    name = "trt tiny reference float16/float16"
    measured = next(one for one in report["lines"] if one["name"] == name)["figures"]["batches"]
    values = [row[len(name) :].split() for row in rows if row.startswith(name + " ")]
    wanted = [("1", "graph"), ("3", "graph")] + [
        ("1", stage) for stage in ("backbone", "distances", "smoothing")
    ]
    for (batch, stage), (first, *floors) in zip(wanted, values, strict=True):
        assert float(first) == pytest.approx(measured[batch][stage][0], rel=1e-2)
        assert all(float(floor) > 0 for floor in floors)
        assert len(floors) == 4
    int8 = next(row for row in rows if row.startswith("trt tiny reference int8/int8"))
    *floors, thor = int8.split()[-4:]
    assert all(float(floor) > 0 for floor in floors)
    assert thor == "-"  # no int8 rate of it is known


# --- planted faults -------------------------------------------------------------------------------

FAULTS = [
    ("a_wrong_constant", "scoring", "tiny reference float32", "largest error "),
    ("a_wrong_tap", "preparing", "prepare", "bytes are NOT the same of rgb, "),
    ("a_leak", "opened_and_closed", "trt opened and closed", "device memory grows by 15.0 MiB"),
    ("an_engine_that_does_not_open", "parity", "trt tiny whitened", "refuses the graph: planted"),
    ("wrong_scores", "parity", "ort-cuda tiny reference", " is off by "),
    ("a_recording_that_does_nothing", "parity", "trt tiny reference", " is off by "),
    ("a_second_process_that_fails", "two_processes", "two processes trt", "the other process fail"),
    ("a_process_that_ignores_sigterm", "terminated", "trt at SIGTERM", "was still there"),
    ("frames_that_get_slower", "under_load", "trt under load", " x the first; "),
]


FEW = ("a_wrong_constant", "a_leak", "a_recording_that_does_nothing")
"""Tried by every `make test`; the others take minutes, and are left to `make fuzz`."""


@pytest.mark.parametrize(
    ("fault", "check", "name", "said"),
    [
        pytest.param(*one, id=one[0], marks=[] if one[0] in FEW else pytest.mark.fuzz)
        for one in FAULTS
    ],
)
def test_a_fault_is_a_failed_line_and_exit_code(rehearse, fault, check, name, said):
    engine = next((engine for engine in ENGINES if engine in name.split()), "trt")
    presets = tuple(preset for preset in PRESETS if preset in name.split()) or PRESETS
    done, report = rehearse("gpu", check, fault=fault, engines=(engine,), presets=presets)
    done.failed(1, "the proof fails", said=("[",))
    assert not report["holds"]
    (one,) = [one for one in report["lines"] if one["name"] == name]
    assert one["status"] == "fail"
    assert said in one["detail"]
    assert f"  fail     {name}: " in done.stdout


def test_every_fault_that_can_be_planted_is_tried():
    assert {fault for fault, *_ in FAULTS} == rehearsal.FAULTS.keys() - {"", "a_crash"}


def test_a_gpu_that_cannot_be_used_is_told_in_one_line(rehearse):
    done, report = rehearse("gpu", "parity", fault="a_crash")
    done.failed(1, "doctor --gpu cannot use the GPU: ", "crashed (SIGSEGV)", said=("[",))
    assert report == {}
    assert "parity" not in done.stdout


def test_images_are_not_taken_for_each_other(tmp_path):
    """Scores of the wrong image fail at every tolerance, whichever it is."""
    for backbone, tolerance in TOLERANCES.items():
        model = write_detector(Spec("tiny", "reference", backbone, "float32"), 64, tmp_path / "x")
        engine = open_engine("ort", model)
        wanted = engine.infer(random_images(model, FRAMES))[1]
        engine.close()
        unit = float(np.ptp(wanted)) if backbone == "int8" else 0.0
        for right, wrong in zip(wanted, np.roll(wanted, 1, axis=0), strict=True):
            found = (wrong.max(keepdims=True)[0, 0], wrong[None])
            assert worst(found, right[None], unit) > tolerance


def test_shared_memory_that_the_process_takes_is_not_lost_twice():
    mib = 2**20
    resident = [mib * cycle for cycle in range(51)]
    free = [1000 * mib - of for of in resident]
    assert _grown(free, resident, shared=False) == (45 * mib, 45 * mib)
    assert _grown(free, resident, shared=True) == (0, 45 * mib)
    leaking = [of - 2 * mib * cycle for cycle, of in enumerate(free)]
    assert _grown(leaking, resident, shared=True) == (90 * mib, 45 * mib)
    free[-1] -= 500 * mib  # another process, for a moment
    assert _grown(free, resident, shared=True) == (0, 45 * mib)


def test_a_lower_clock_throttles_only_where_frames_get_slower():
    before, after = {"mhz": 1000}, {"mhz": 500}
    assert _throttled(before, after, drift=1.0, allowed=1.1) == ""
    assert _throttled(before, after, drift=1.3, allowed=1.1) == ": it THROTTLES"
    assert _throttled(before, before, drift=1.3, allowed=1.1) == ""
    assert _throttled(before, before | {"reasons": "0x20"}, 1.0, 1.1) == ": it THROTTLES"


# --- without a GPU --------------------------------------------------------------------------------


def test_without_a_gpu_one_line_says_what_is_missing(tmp_path, monkeypatch):
    answer = {"status": "missing", "detail": "no libcuda (not found)", "fix": "", "items": []}
    monkeypatch.setattr(proof, "ask", lambda *_: answer)
    file = tmp_path / "report.json"
    done = in_process("doctor", "--gpu", "--json", file)
    done.failed(1, "doctor --gpu needs an NVIDIA GPU: no libcuda (not found)")
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_for_the_plans_is_refused_before_the_work(monkeypatch):
    answer = {"status": "ok", "detail": "", "fix": "", "items": []}
    monkeypatch.setattr(proof, "ask", lambda *_: answer)
    monkeypatch.setattr(proof, "available_memory", lambda: 2**40)
    monkeypatch.setattr(proof.shutil, "disk_usage", lambda _: SimpleNamespace(free=6 * 10**9))
    monkeypatch.setattr(proof, "run_child", lambda *_: pytest.fail("it was begun"))
    in_process("doctor", "--gpu").failed(1, "needs 7.0 GB for its plans", "6.0 GB free", "TMPDIR")
    monkeypatch.setattr(proof, "available_memory", lambda: 0)  # without the large network
    monkeypatch.setattr(proof, "run_child", lambda *_: Done(1, "", "begun", 1.0))
    in_process("doctor", "--gpu").failed(1, "begun", said=("[",))


def test_the_plans_are_as_many_as_the_documents_say():
    graphs = set()
    for network, preset in itertools.product(Sizes().networks, PRESETS):
        # With other constants the engine `trt` finds its plan.
        graphs |= {
            (preset, network, one.backbone) for one in compared(Sizes(), "trt", network, preset)
        }
        graphs |= set(compared(Sizes(), "trt/graph", network, preset))
    plans = 2 * len(graphs)  # LIVE and MANY
    root = Path(__file__).parents[2]
    for place in ("docs/jetson.md", "docs/bench.md", "padim_edge/cli/doctor.py"):
        assert f"{plans} " in (root / place).read_text()


def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "prove", lambda **_: pytest.fail("it was begun"))
    in_process("doctor", "--gpu", "--json", tmp_path / "no" / "report.json").failed(
        1, "cannot write"
    )


# --- what becomes of a check ----------------------------------------------------------------------

MODULE = """
import os, signal, time
from padim_edge.errors import MissingDependencyError, PadimEdgeError, ProcessorError
from padim_edge.measure.proof_line import line

def good(sizes, folder, *case):
    print("libraries print what they like")
    yield line("good " + " ".join(case), True, f"frames {sizes.frames}", cycles=sizes.cycles)

def half(sizes, folder):
    yield line("first", True, "done")
    raise PadimEdgeError("then it broke")

def bug(sizes, folder): raise ValueError("a bug")
def crash(sizes, folder): os.kill(os.getpid(), signal.SIGSEGV)
def hang(sizes, folder): time.sleep(600)
def silent(sizes, folder): return []
def no_library(sizes, folder):
    from padim_edge.measure import proof_engines

    def compared(*_):
        raise PadimEdgeError("trt needs TensorRT") from ModuleNotFoundError("tensorrt")

    proof_engines._compared = compared
    return proof_engines.parity(sizes, folder, "trt", "tiny")

def missing(sizes, folder): raise MissingDependencyError("this", "tensorrt", "trt")
def impossible(sizes, folder): raise ProcessorError("not with this processor")
def one(sizes, folder):
    yield line("one", False, "wrong", cycles=1)
def cache(sizes, folder):
    yield line("cache", folder.is_dir(), os.environ["XDG_CACHE_HOME"])
"""


@pytest.fixture
def table(tmp_path, monkeypatch) -> Callable[..., Proof]:
    """Runs checks of the functions above, without a GPU."""
    import padim_edge.measure

    (tmp_path / "made_up_checks.py").write_text(MODULE)
    monkeypatch.setattr(proof, "ask", lambda *_: {"status": "ok", "detail": "", "items": []})
    monkeypatch.setattr(proof, "_check_disk", lambda _: None)  # no plans are built here
    # A path in sys.path is the child's too; the room is where a check is looked up.
    monkeypatch.setattr(padim_edge.measure, "__path__", [*padim_edge.measure.__path__])
    site = tmp_path / "sitecustomize.py"
    site.write_text(
        f"import padim_edge.measure\npadim_edge.measure.__path__.append({str(tmp_path)!r})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    def run(*names: str, limit: float = 60.0, **options: Any) -> Proof:
        gate = Check("device", "made_up_checks:good", lambda _: [()])
        others = [
            Check("kernels", f"made_up_checks:{name}", lambda _: [()], limit) for name in names
        ]
        return prove(checks=(gate, *others), **options)

    return run


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        ("bug", "fail", "ValueError: a bug"),
        ("crash", "fail", "crashed (SIGSEGV)"),
        ("silent", "fail", "failed"),
        ("missing", "not run", "this needs tensorrt, which is not installed"),
        ("no_library", "not run", "trt needs TensorRT"),
        ("impossible", "absent", "not with this processor"),
        ("one", "fail", "wrong"),
    ],
)
def test_whatever_happens_is_a_line(table, name, status, detail):
    found = table(name, "good")
    first, line, last = found.lines
    assert (line.name, line.status, line.area) == (name.replace("_", " "), status, "kernels")
    assert detail in line.detail
    assert first.status == last.status == "pass", "what comes after is run all the same"
    assert found.holds == (status == "absent")


def test_a_check_that_hangs_is_stopped(table):
    line = table("hang", limit=3.0).lines[1]
    assert line.status == "fail"
    assert "gave no answer within 3 s" in line.detail


def test_lines_before_an_error_are_kept(table):
    found = table("half")
    assert [(one.name, one.status) for one in found.lines[1:]] == [
        ("first", "pass"),
        ("half", "fail"),
    ]


def test_lines_are_told_as_they_come_and_cases_before_them(table):
    told: list[str] = []
    table(
        "one",
        sizes=Sizes(frames=7, cycles=3),
        tell=lambda line: told.append(f"{line.status} {line.detail}"),
        begin=lambda name, number, total: told.append(f"{name} {number}/{total}"),
    )
    assert told == ["good 1/2", "pass frames 7", "one 2/2", "fail wrong"]


def test_what_was_found_is_reported_when_it_is_interrupted(table, tmp_path, monkeypatch):
    def begin(name: str, number: int, _: int) -> None:
        if number == 3:
            monkeypatch.setattr(proof, "run_child", interrupt)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    found = table("one", "half", "good", begin=begin)
    assert [(one.name, one.status) for one in found.lines[1:]] == [
        ("one", "fail"),
        ("half", "not run"),
        ("good", "not run"),
    ]
    assert found.interrupted
    monkeypatch.setattr(proof, "prove", lambda **_: found)
    file = tmp_path / "report.json"
    assert in_process("doctor", "--gpu", "--json", file).code == 130
    assert json.loads(file.read_text())["counts"]["not run"] == 2


def test_plans_and_kernels_go_to_a_cache_that_is_removed(table):
    line = table("cache").lines[1]
    assert line.status == "pass"
    assert "padim-edge-proof-" in line.detail
    assert not Path(line.detail).parent.exists()


def test_what_this_machine_cannot_have_is_absent_and_said(table, monkeypatch):
    monkeypatch.setattr(proof.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(proof, "is_jetson", lambda _: True)
    monkeypatch.setattr(proof, "available_memory", lambda: 2**30)
    found = table()
    absent = {one.name: one.detail for one in found.lines if one.status == "absent"}
    assert set(absent) == {"ort-cuda", "wide_resnet50_2"}
    assert "trt is its engine" in absent["ort-cuda"]
    assert absent["wide_resnet50_2"] == "its detectors need 6 GiB, and 1.0 GiB of memory are free"
    assert found.holds
    begun: list[str] = []
    checks = (CHECKS[0], Check("speed", "made_up_checks:good", lambda _: [("ort-cuda",), ("trt",)]))
    with pytest.raises(PadimEdgeError, match="cannot use the GPU"):
        prove(checks=checks, begin=lambda name, *_: begun.append(name))
    assert begun == ["gpu"]


@pytest.mark.parametrize(
    ("found", "holds"),
    [(["pass", "absent"], True), (["pass", "not run"], False), (["pass", "fail"], False)],
)
def test_what_could_not_be_run_is_no_proof(found, holds):
    lines = tuple(Line("x", status, "") for status in found)
    assert Proof("", "", "", Sizes(), 0.0, lines).holds is holds


def test_sizes_survive_json():
    import dataclasses

    assert Sizes.of(json.loads(json.dumps(dataclasses.asdict(Sizes())))) == Sizes()


# --- --measured -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is no JSON, or not whole"),
        ("[]", "no report of padim-edge doctor --gpu"),
        ('{"schema": 4, "engines": []}', "no report of padim-edge doctor --gpu"),
        ('{"schema": 99, "lines": [], "sizes": {}, "device": ""}', "its schema is 99"),
        ('{"schema": 1, "lines": [], "sizes": {}, "device": ""}', "no engine was timed"),
    ],
)
def test_what_is_no_such_report_is_refused(tmp_path, text, said):
    file = tmp_path / "report.json"
    file.write_text(text)
    in_process("bench", "--roofline", "--measured", file).failed(2, said)


def test_measured_measures_nothing_itself(tmp_path):
    file = tmp_path / "report.json"
    in_process("bench", "--measured", file).failed(2, "--measured goes with --roofline alone")
    arguments = ("bench", "--roofline", "--measured", file, "--json", tmp_path / "x.json")
    in_process(*arguments).failed(2, "--measured goes with --roofline alone")
    in_process("bench", "--roofline", "--measured", file).failed(1, "cannot read")
