"""Runs the commands and the examples that a page of the documentation shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from segformer.cli import main

GUIDE_FOLDER = Path(__file__).parent.parent / "docs/guides"


def code_blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the code blocks of a page; commands have no language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """The words after ``segformer`` of each command in a block."""
    for line in text.replace("\\\n", "").strip().splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "segformer", line
        yield words


def run_guide(
    guide: str, smaller: Mapping[str, str], other_block: Callable[[str, str], None]
) -> list[list[str]]:
    """Run a guide in the current folder: every command has to succeed and to write its ``--out``.

    Args:
        guide: name of the file in ``docs/guides``, without its ending.
        smaller: options that trainings are run with instead, so that they take seconds.
        other_block: is called with the language and text of blocks that are neither commands nor
            Python, in their order on the page.

    Returns:
        The words of each command, as the guide shows them.
    """
    done = []
    for language, text in code_blocks(GUIDE_FOLDER / f"{guide}.md"):
        if language == "python":
            exec(compile(text, f"{guide}.md", "exec"), {})
        elif language == "":
            for words in commands(text):
                replaced = smaller if words[0] == "train" else {}
                assert main(with_options(words, replaced)) == 0, words
                if "--out" in words:
                    assert Path(words[words.index("--out") + 1]).exists(), words
                done.append(words)
        else:
            other_block(language, text)
    return done


def with_options(words: list[str], options: Mapping[str, str]) -> list[str]:
    """The words of a command with other values of some options."""
    for option, value in options.items():
        if option in words:
            at = words.index(option)
            words = words[:at] + words[at + 2 :]
        words = [*words, option, value]
    return words
