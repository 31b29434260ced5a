"""The options of the service. Nothing here imports torch or FastAPI."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from segformer.options import depends

ImageFormat: TypeAlias = Literal["jpeg", "png", "webp", "bmp", "gif", "tiff", "npy"]
"""File formats that the service can read."""

_MOST_MEGAPIXELS = 178
"""Pillow reads no larger images; see ``PIL.Image.MAX_IMAGE_PIXELS``."""

_FRACTIONS = ("batch_wait", "deadline", "max_megabytes", "max_megapixels")


@dataclass(frozen=True)
class ServeOptions:
    """Addresses, limits and access.

    Attributes:
        host: Address to listen on. 127.0.0.1 is reached from this machine only, 0.0.0.0 from
            everywhere.
        port: Port to listen on; 0 takes a free one.
        queue_size: Images that are in the service at once. Further ones are refused with status
            429 and a time after which to try again.
        deadline: Seconds until a request is given up with status 504.
        batch_wait: Seconds that an image waits at most for others of its size, where images are
            run in batches.
        max_megabytes: Largest request, 1 MB being 10^6 bytes.
        max_megapixels: Largest image, 1 megapixel being 10^6 pixels.
        formats: File formats that are read.
        api_key_file: File with the keys, one in each line, of which a request must have one.
        cors_origins: Origins whose web pages may use the service, such as https://example.org, or
            * for all.
        access_log: Log each request as a line of JSON.
        label_studio_url: Label Studio from which tasks are loaded; its token is read from the
            environment variable LABEL_STUDIO_API_KEY.
        label_studio_files: Folder of Label Studio's local files (its
            LOCAL_FILES_DOCUMENT_ROOT).

    Raises:
        ValueError: An option is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    queue_size: int = 64
    deadline: float = 30.0
    batch_wait: float = 0.004
    max_megabytes: float = 32.0
    max_megapixels: float = 50.0
    formats: tuple[ImageFormat, ...] = ("jpeg", "png", "webp", "bmp", "tiff")
    api_key_file: Annotated[
        Path | None, depends("FILE", "the key in the variable SEGFORMER_API_KEY, else none")
    ] = None
    cors_origins: Annotated[tuple[str, ...], depends("[ORIGIN ...]", "none")] = ()
    access_log: bool = True
    label_studio_url: Annotated[
        str | None, depends("URL", "the variable LABEL_STUDIO_URL, else none")
    ] = None
    label_studio_files: Annotated[Path | None, depends("FOLDER", "none")] = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            if field.name in _FRACTIONS and not value >= 0:
                raise ValueError(f"{field.name} must be zero or positive, not {value}")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port must be from 0 to 65535, not {self.port}")
        if self.queue_size < 1:
            raise ValueError(f"queue_size must be at least 1, not {self.queue_size}")
        if not self.deadline:
            raise ValueError("deadline must be positive")
        if not self.max_bytes or not 0 < self.max_megapixels <= _MOST_MEGAPIXELS:
            raise ValueError(
                "max_megabytes must be positive, max_megapixels positive and at most "
                f"{_MOST_MEGAPIXELS}"
            )
        unknown = set(self.formats) - set(get_args(ImageFormat))
        if unknown or not self.formats:
            raise ValueError(
                f"formats must be some of {', '.join(get_args(ImageFormat))}, not "
                f"{', '.join(sorted(unknown)) or 'none'}"
            )

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest request."""
        return int(1e6 * self.max_megabytes)

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest image."""
        return int(1e6 * self.max_megapixels)
