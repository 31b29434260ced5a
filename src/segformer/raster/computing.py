"""Blocks of a scene on this machine: reading, the model and the encoding of results overlap."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from segformer.image.scene_grid import Grid, Window
from segformer.raster.blocks import BlockPredictor, BlockResult, ReadStrip
from segformer.raster.geotiff import encode_block
from segformer.raster.tiling import Block, Strip

_WAITING_RESULTS = 1
"""Results that may wait to be encoded, so that memory stays bounded."""


class BlockFailed(ValueError):
    """A block that could not be computed where it was given to; other blocks are not affected."""


@dataclass(frozen=True, eq=False)
class EncodedBlock:
    """A predicted block as it is kept on disk.

    Attributes:
        pixels: Its pixels in the raster.
        label_map: Content of a GeoTIFF of class ids; None where nothing is predicted.
        confidence: That of confidences; None unless asked for.
    """

    pixels: Window
    label_map: bytes | None
    confidence: bytes | None = None


ComputeBlocks: TypeAlias = Callable[[Sequence[Block]], Generator[EncodedBlock, None, None]]
"""Computes blocks and gives each when it is done, in any order.

A block may be given in several parts. `BlockFailed` is raised after what could be computed.
"""


def encode_result(result: BlockResult, grid: Grid, nodata: int) -> EncodedBlock:
    """Compress a block.

    Args:
        result: The block.
        grid: The raster of which it is a part.
        nodata: Class id where nothing is predicted.
    """
    pixels = result.block.pixels
    if result.label_map is None:
        return EncodedBlock(pixels, None)
    place = grid.part(pixels)
    confidence = None
    if result.confidence is not None:
        confidence = encode_block(result.confidence, place, 0)
    return EncodedBlock(pixels, encode_block(result.label_map, place, nodata), confidence)


def compute_blocks(
    predict: BlockPredictor, blocks: Sequence[Block]
) -> Generator[EncodedBlock, None, None]:
    """Predict blocks one after the other; one is encoded while the next is computed.

    If one cannot be read, those before it are given first.

    Raises:
        UnreadableImage: The scene cannot be read.
    """
    grid = predict.pixels.scene.full_grid
    encoding: deque[Future[EncodedBlock]] = deque()
    with (
        ThreadPoolExecutor(1, thread_name_prefix="reader") as reader,
        ThreadPoolExecutor(1, thread_name_prefix="encoder") as encoder,
    ):
        read = _Ahead(predict.read_strip, _strips(blocks), reader)
        try:
            for block in blocks:
                result = predict(block, read)
                encoding.append(encoder.submit(encode_result, result, grid, predict.nodata))
                del result
                while len(encoding) > _WAITING_RESULTS:
                    yield encoding.popleft().result()
        except (Exception, KeyboardInterrupt):
            while encoding:
                yield encoding.popleft().result()
            raise
        while encoding:
            yield encoding.popleft().result()
    predict.forget()


class _Ahead:
    """Reads strips in order, one ahead of the model.

    Args:
        read: Reads one.
        strips: In the order in which they are asked for.
        pool: Runs ``read``.
    """

    def __init__(
        self,
        read: Callable[[Strip], ReadStrip | None],
        strips: Iterator[Strip],
        pool: ThreadPoolExecutor,
    ):
        self._read, self._strips, self._pool = read, strips, pool
        self._next: tuple[Strip, Future[ReadStrip | None]] | None = None
        self._submit()

    def _submit(self) -> None:
        strip = next(self._strips, None)
        self._next = None if strip is None else (strip, self._pool.submit(self._read, strip))

    def __call__(self, strip: Strip) -> ReadStrip | None:
        assert self._next is not None and self._next[0] == strip
        content = self._next[1].result()
        self._submit()
        return content


def _strips(blocks: Sequence[Block]) -> Iterator[Strip]:
    """The strips that a `BlockPredictor` asks for: it keeps the last of each block."""
    kept = None
    for block in blocks:
        yield from (strip for strip in block.strips if strip != kept)
        kept = block.strips[-1]
