"""A fixed part of many names, for schedulers that start one process for each part."""

from __future__ import annotations

import re
from dataclasses import dataclass
from zlib import crc32


@dataclass(frozen=True)
class Shard:
    """One of several parts. Together they have every name, and no two have the same.

    A name's part follows from the name alone. So all machines agree on it without talking to
    each other, and it stays the same when other images are added.

    Attributes:
        number: From 1 to ``count``.
        count: How many there are.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(
                f"shard {self.number}/{self.count}: the first number must be from 1 to the second"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``"3/16"``: the third of 16.

        Raises:
            ValueError: It is something else.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ValueError(f"shard {text!r} must be a number of how many, such as 3/16")
        return cls(int(match[1]), int(match[2]))

    def __contains__(self, name: str) -> bool:
        data = name.encode("utf-8", errors="surrogatepass")
        return crc32(data) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
