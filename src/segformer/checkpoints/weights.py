"""Opening a file of weights, whatever its type."""

from __future__ import annotations

from pathlib import Path

from segformer.checkpoints.errors import CheckpointError
from segformer.checkpoints.hdf5 import HDF5_MAGIC
from segformer.checkpoints.keras import KerasFile, is_keras_archive
from segformer.checkpoints.pickles import PickleFile
from segformer.checkpoints.tensors import ZIP_MAGIC, SafetensorsFile, TensorFile


def open_tensors(path: Path) -> TensorFile:
    """Open a file of tensors; its first bytes, not its name, tell which type it has.

    Raises:
        CheckpointError: It is neither safetensors, a pickle of tensors alone nor HDF5, is damaged,
            or asks for far more memory than its size.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    if head[8:9] == b"{":
        return SafetensorsFile(path)
    if head.startswith(HDF5_MAGIC) or (head.startswith(ZIP_MAGIC) and is_keras_archive(path)):
        return KerasFile(path)
    if head.startswith((ZIP_MAGIC, b"\x80")):
        return PickleFile(path)
    if head.startswith((b"version https://git-lfs", b"version https:")):
        raise CheckpointError(
            f"{path}: a Git LFS pointer, not the weights themselves; run 'git lfs pull' there"
        )
    if head.lstrip()[:1] in (b"<", b"{"):
        raise CheckpointError(f"{path}: a text file (a web page saved by mistake?), not weights")
    kind = "an empty file" if not head else "neither safetensors, a PyTorch file nor HDF5"
    raise CheckpointError(f"{path}: {kind}; it may be truncated: download it again")
