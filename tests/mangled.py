"""Images of every format, mangled at random, for tests of the readers."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import tifffile
from PIL import Image


def whole_files() -> dict[str, bytes]:
    """One small file of each kind: name with suffix -> content."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    rgb[4:20, 4:28] = 90
    deep = rgb.astype(np.uint16) * 257
    files = {}
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "ppm", "tif"):
        files[f"rgb.{suffix}"] = _saved(Image.fromarray(rgb), suffix)
    exif = Image.Exif()
    exif[0x0112] = 6
    files["turned.jpg"] = _saved(Image.fromarray(rgb), "jpg", exif=exif)
    files["palette.png"] = _saved(Image.fromarray(rgb).quantize(16), "png")
    files["gray.pgm"] = _saved(Image.fromarray(rgb[:, :, 0]), "ppm")
    files["deep.png"] = _saved(Image.fromarray(deep[:, :, 0]), "png")
    files["deflate.tif"] = _saved(Image.fromarray(rgb), "tif", compression="tiff_deflate")
    files["lzw.tif"] = _saved(Image.fromarray(rgb), "tif", compression="tiff_lzw")
    arrays = {"deep": deep, "float": deep.astype(np.float32), "two": deep[:, :, :2]}
    for name, values in arrays.items():
        for compression in (None, "zlib"):
            buffer = io.BytesIO()
            tifffile.imwrite(
                buffer,
                values,
                compression=compression,
                photometric="rgb" if values.shape[2] == 3 else "minisblack",
                planarconfig="contig",
                metadata=None,
            )
            files[f"{name}_{compression}.tif"] = buffer.getvalue()
    for name, values in {"rgb": rgb, "float": deep[:, :, 0].astype(np.float64)}.items():
        buffer = io.BytesIO()
        np.save(buffer, values)
        files[f"{name}.npy"] = buffer.getvalue()
    return files


def mangled_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Files with a truncation, flipped bits, a changed header or a swapped chunk."""
    rng = np.random.default_rng(seed)
    files = sorted(whole_files().items())
    for i in range(count):
        name, content = files[i % len(files)]
        data = bytearray(content)
        match int(rng.integers(5)):
            case 0:
                del data[int(rng.integers(len(data))) :]
            case 1:
                for at in rng.integers(len(data), size=int(rng.integers(1, 12))):
                    data[at] ^= 1 << int(rng.integers(8))
            case 2:
                for at in rng.integers(min(len(data), 160), size=int(rng.integers(1, 6))):
                    data[at] = int(rng.integers(256))
            case 3:
                at, size = int(rng.integers(len(data))), int(rng.integers(1, 9))
                data[at : at + size] = rng.choice([b"\0", b"\xff", b"\x7f", b"9"]) * size
            case 4:
                first, second = sorted(int(v) for v in rng.integers(len(data), size=2))
                data = data[:first] + data[second:] + data[first:second]
        yield name, bytes(data)


def _saved(image: Image.Image, suffix: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    names = {"jpg": "JPEG", "tif": "TIFF", "ppm": "PPM"}
    image.save(buffer, names.get(suffix, suffix.upper()), **options)
    return buffer.getvalue()
