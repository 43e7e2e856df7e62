"""Nobody is taken for dead because a clock was set."""

import time

import pytest

from services.run_recorder import LEASE, RunRecorder


class Clocks:
    """Time as a test wants it."""

    def __init__(self) -> None:
        self.monotonic = 1_000.0
        self.wall = 1_700_000_000.0

    def passes(self, seconds: float, set_by: float = 0.0) -> None:
        self.monotonic += seconds
        self.wall += seconds + set_by


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(time, "monotonic", lambda: made.monotonic)
    monkeypatch.setattr(time, "time", lambda: made.wall)
    return made


def recorder() -> RunRecorder:
    return RunRecorder(None, lambda _: None)  # type: ignore[arg-type] # nothing is written


@pytest.mark.parametrize("jump", [3_600.0, -3_600.0, 30.0])
def test_leases_are_not_believed_for_a_while_after_the_clock_was_set(clocks: Clocks, jump: float) -> None:
    ours = recorder()
    clocks.passes(2)
    assert ours._clock_is_believed()
    clocks.passes(2, set_by=jump)
    assert not ours._clock_is_believed(), "by this clock everybody's lease may look over"
    clocks.passes(LEASE.total_seconds() - 1)
    assert not ours._clock_is_believed()
    clocks.passes(2)
    assert ours._clock_is_believed()


def test_a_clock_that_drifts_a_little_is_believed(clocks: Clocks) -> None:
    ours = recorder()
    for _ in range(10):
        clocks.passes(2, set_by=0.05)
        assert ours._clock_is_believed()
