"""What a probe says of an error: its kind, and the command that fixes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from padim_edge.errors import MissingDependencyError, PadimEdgeError
from padim_edge.runtime import probe


def test_errors_of_ours_keep_their_remedy():
    def fails(error: Exception) -> Callable[[], probe.Answer]:
        def raising() -> probe.Answer:
            raise error

        return raising

    answer = probe.tried(fails(MissingDependencyError("this", "that", "cpu")))
    assert (answer.status, answer.fix) == ("missing", "pip install 'padim-edge[cpu]'")
    answer = probe.tried(fails(PadimEdgeError("no: run  sudo apt install x  and try again")))
    assert (answer.status, answer.fix) == ("broken", "sudo apt install x")
    answer = probe.tried(fails(ValueError("two\nlines")))
    assert (answer.status, answer.detail, answer.fix) == ("broken", "ValueError: two lines", "")


@pytest.mark.parametrize(("machine", "command"), [("aarch64", "apt x"), ("x86_64", "pip y")])
def test_a_remedy_for_another_machine_is_none(monkeypatch, machine, command):
    monkeypatch.setattr(probe.platform, "machine", lambda: machine)
    assert probe.remedy("no: on Jetson run  apt x  and on x86 run  pip y") == command
    assert probe.remedy("no: on Jetson run  apt x") == ("apt x" if machine == "aarch64" else "")
