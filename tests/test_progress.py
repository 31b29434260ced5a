import pytest

from segformer import progress
from segformer.progress import ProgressBar


def test_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with ProgressBar("counting", 5, "sheep", start=1, scale=3) as bar:
        for _ in range(4):
            bar.advance(note="asleep")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert lines[-1].startswith("counting: 5/5, ")
    assert lines[-1].endswith("sheep/s, 0:00 left, asleep")


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("counting", 3, "sheep") as bar:
        bar.advance(3)
    assert capsys.readouterr().err == ""


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=120))
    with ProgressBar("counting", 5, "sheep") as bar:
        bar.advance(2, note="awake")
        with bar.paused():
            pass
        bar.advance(3)
    assert "counting" in screen.getvalue()
    assert "sheep/s" in screen.getvalue()
