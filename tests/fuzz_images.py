"""Feed mangled image files to the readers: ``python tests/fuzz_images.py --count 20000``.

No exception but ValueError, MemoryError and OSError may leave a reader. Exits with code 1 after
listing what else did.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from mangled import mangled_files
from segformer.image import read_image, read_mask_or_colors

ALLOWED = (ValueError, MemoryError, OSError)


def main() -> int:
    """Run and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable()
    warnings.simplefilter("ignore")
    outcomes: Counter[str] = Counter()
    escaped = []
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, data) in enumerate(mangled_files(options.count, options.seed)):
            path = Path(folder) / name
            path.write_bytes(data)
            readers = {
                "RGB": lambda path=path: read_image(path),
                "native": lambda path=path: read_image(path, as_8_bit=False),
                "two": lambda path=path: read_image(path, 2, as_8_bit=False),
                "bytes": lambda data=data: read_image(data, 1),
                "mask": lambda path=path: read_mask_or_colors(path),
            }
            for reader, read in readers.items():
                try:
                    read()
                    outcomes["read"] += 1
                except ALLOWED as error:
                    outcomes[type(error).__name__] += 1
                except Exception as error:
                    escaped.append(f"{name} (file {i}, {reader}): {type(error).__name__}: {error}")
    print(dict(outcomes))
    print("\n".join(escaped) or "nothing else escaped")
    return bool(escaped)


if __name__ == "__main__":
    sys.exit(main())
