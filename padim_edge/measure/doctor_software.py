"""The doctor's findings on Python's packages, ONNX Runtime's providers and our engines."""

from __future__ import annotations

import re

from padim_edge.measure.finding import Finding, ask

ENGINE_SECONDS = 600.0  # the first time, kernels are compiled and a plan is built

PACKAGES = (
    ("numpy", "numpy", "pip install numpy"),
    ("onnx", "onnx", "pip install onnx"),
    ("PIL", "pillow", "pip install pillow"),
    ("torch", "torch", "pip install 'padim-edge[export]'"),
    ("torchvision", "torchvision", "pip install 'padim-edge[export]'"),
    ("onnxscript", "onnxscript", "pip install 'padim-edge[export]'"),
    ("sklearn", "scikit-learn", "pip install 'padim-edge[eval]'"),
    ("scipy", "scipy", "pip install 'padim-edge[eval]'"),
)
"""Importable name, name of the distribution, and what brings it."""

_PURPOSES = {"export": "only for export", "eval": "only for eval, tune and ledoit-wolf"}


def packages() -> list[Finding]:
    """Each of `PACKAGES`, by importing it."""
    return [_package(*of) for of in PACKAGES]


def _package(module: str, distribution: str, fix: str) -> Finding:
    answer = ask("package", module, distribution)
    good = answer["status"] == "ok"
    extra = re.search(r"\[(\w+)\]", fix)
    purpose = f" ({_PURPOSES[extra[1]]})" if extra else ""
    return Finding(
        "python", distribution, answer["status"], answer["detail"] + purpose, "" if good else fix
    )


def onnxruntime() -> list[Finding]:
    """ONNX Runtime, and each provider that it lists, by running a graph."""
    answer = ask("onnxruntime")
    found = [Finding("python", "onnxruntime", answer["status"], answer["detail"], answer["fix"])]
    for provider in answer["items"]:
        trial = ask("provider", provider)
        status = trial["status"]
        # Every wheel lists it, and it sends requests to a service: nothing here is broken.
        if provider == "AzureExecutionProvider" and status == "broken":
            status, trial["detail"] = "absent", "runs no graph on this machine"
        name = f"onnxruntime {provider.removesuffix('ExecutionProvider')}"
        found.append(Finding("python", name, status, trial["detail"]))
    return found


def engines() -> list[Finding]:
    """Each engine of ours, by the scores of frames that go through it."""
    answer = ask("engines")
    if answer["status"] != "ok":
        detail = answer["detail"]
        return [Finding("engine", "all", "broken", detail, "pip install --upgrade padim-edge")]
    found = []
    for name in answer["items"]:
        trial = ask("engine", name, seconds=ENGINE_SECONDS)
        found.append(Finding("engine", name, trial["status"], trial["detail"], trial["fix"]))
    return found
