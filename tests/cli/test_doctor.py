"""What doctor prints of its findings, whatever machine they are of."""

from __future__ import annotations

import pytest
from helpers import in_process

from padim_edge.measure.doctor import Diagnosis
from padim_edge.measure.finding import Finding


@pytest.mark.parametrize(
    ("running", "said"),
    [
        (["ort"], "engines that run: ort; auto takes ort"),
        (["trt/graph", "ort"], "engines that run: trt/graph, ort; auto takes ort"),
        (["openvino-bf16"], "engines that run: openvino-bf16; auto takes none of them"),
    ],
)
def test_the_last_line_names_what_auto_takes(monkeypatch, running, said):
    findings = tuple(Finding("engine", name, "ok", "") for name in running)
    monkeypatch.setattr(
        "padim_edge.measure.doctor.examine", lambda **_: Diagnosis("2026-11-25", findings)
    )
    assert in_process("doctor").worked().stdout.splitlines()[-1] == said


def test_what_is_missing_stands_with_its_fix(monkeypatch):
    finding = Finding("engine", "ort", "missing", "no onnxruntime", "pip install onnxruntime")
    monkeypatch.setattr(
        "padim_edge.measure.doctor.examine", lambda **_: Diagnosis("2026-11-25", (finding,))
    )
    done = in_process("doctor")
    done.failed(1, "no engine runs here")
    assert [" ".join(line.split()) for line in done.stdout.splitlines() if line] == [
        "engine",
        "missing ort no onnxruntime",
        "fix: pip install onnxruntime",
    ]
