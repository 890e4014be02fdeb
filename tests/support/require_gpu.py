"""`pytest --require-gpu`: a run in which no test marked gpu met one fails, and says why."""

from __future__ import annotations

import pytest

OPTION = "--require-gpu"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(OPTION, action="store_true", help="fail if no test ran on a GPU")


def pytest_configure(config: pytest.Config) -> None:
    """Watch the run, if that is asked for."""
    if config.getoption(OPTION):
        config.pluginmanager.register(RequireGpu())


class RequireGpu:
    """Counts the tests that ran on a GPU, and keeps the reasons of those that did not."""

    def __init__(self) -> None:
        self.ran = 0
        self.reasons: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for set-up, call and tear-down of each test."""
        if "gpu" not in report.keywords:
            return
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
        elif report.when == "call":
            self.ran += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run."""
        if not self.ran:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was missing."""
        if not self.ran:
            terminalreporter.section(f"{OPTION}: not one test ran on a GPU", red=True)
            reasons = self.reasons or {"no test is marked gpu among those that were chosen": 0}
            for reason, count in reasons.items():
                terminalreporter.line(f"{reason} ({count} tests)" if count else reason)
