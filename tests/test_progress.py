import io
import logging
import time

import pytest
from rich.console import Console

from segformer import progress
from segformer.progress import ProgressBar


@pytest.fixture(autouse=True)
def _messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "segformer")


@pytest.fixture
def ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by ten seconds each time that it is read."""
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    shown = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=shown, force_terminal=True, width=120))
    return shown


@pytest.mark.usefixtures("ten_seconds")
def test_messages_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    with ProgressBar("counting", 5, "images", start=1, scale=3) as bar:
        for _ in range(4):
            bar.advance(note="slowly")
    assert len(caplog.messages) >= 2
    assert caplog.messages[0].startswith("counting: 3/5, 0.1 images/s, 0:")
    assert caplog.messages[-1].endswith("s/image, 0:00 left, slowly")
    assert len([line for line in caplog.messages if "5/5" in line]) == 1


@pytest.mark.usefixtures("ten_seconds")
def test_progress_within_a_unit(caplog: pytest.LogCaptureFixture) -> None:
    with ProgressBar("counting", 2, "images") as bar:
        bar.within(0.5, "window 1/2")
        bar.within(0.75, "window 3/4")
        bar.advance()
    assert caplog.messages[0].startswith("counting: 0/2, ")
    assert "left, window " in caplog.messages[0]
    assert "0:00 left" not in caplog.messages[0]
    assert caplog.messages[-1].startswith("counting: 1/2")


def test_short_work_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with ProgressBar("counting", 3, "images") as bar:
        bar.advance(3)
    assert not caplog.messages


def test_a_bar_in_a_terminal(screen: io.StringIO) -> None:
    with ProgressBar("counting", 5, "images") as bar:
        bar.advance(2, note="awake")
        bar.within(0.5, "window 1/2")
        with bar.paused():
            pass
        bar.advance(3)
        time.sleep(0.15)  # longer than a frame
    assert "counting" in screen.getvalue()
    assert "images/s" in screen.getvalue()


def test_no_bar_unless_messages_are_shown(
    screen: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "segformer")
    with ProgressBar("counting", 5, "images") as bar:
        bar.advance(5)
    assert screen.getvalue() == ""
