"""Opening a checkpoint of any format: everything about the model except its weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segformer.checkpoints import hub, keras_config, layout
from segformer.checkpoints.errors import CheckpointError, printable
from segformer.checkpoints.fit import check_fit, infer_config
from segformer.checkpoints.formats import KERASHUB, recognize
from segformer.checkpoints.naming import Format
from segformer.checkpoints.tensors import READ_SUFFIXES, Shards, TensorFile
from segformer.checkpoints.weights import open_tensors
from segformer.classes import ClassSet
from segformer.config import SegFormerConfig
from segformer.image import Preprocessing

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = "human-parsing-b0"
"""Name of the model that ships inside the package."""

PARTS = {"segmenter": ("encoder.", "decoder."), "classifier": ("encoder.", "head.")}
"""What the tensors' names begin with, for each kind of model; an encoder alone has the first."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class Checkpoint:
    """An opened model: everything is read except the weights.

    Attributes:
        origin: The source it was opened from, for messages.
        path: File of the weights (of several, the first).
        files: All files of its weights.
        folder: Folder that describes it with JSON files, or None for a file of weights alone.
        format: Checkpoint format of its tensors' names.
        shapes: Shapes of the tensors, by the names in this package.
        config: Configuration, as its files state it or inferred from the shapes.
        classes: Its classes; numbered where no file names them.
        preprocessing: How an image becomes its input.
        unknown: Names of tensors that no part of a SegFormer has.
        unused: Names of tensors that inference does not use.
        license: License that its card states, or None.
    """

    origin: str
    path: Path
    files: tuple[Path, ...]
    folder: Path | None
    format: Format
    shapes: dict[str, tuple[int, ...]]
    config: SegFormerConfig
    classes: ClassSet
    preprocessing: Preprocessing
    unknown: list[str]
    unused: list[str]
    license: str | None
    _names: dict[str, str] = field(repr=False)
    _file: TensorFile = field(repr=False)

    @property
    def kind(self) -> str:
        """What it holds: a "segmenter", a "classifier" or an "encoder"."""
        for kind, (_, head) in PARTS.items():
            if any(name.startswith(head) for name in self.shapes):
                return kind
        return "encoder"

    @property
    def parts(self) -> tuple[str, ...]:
        """Beginnings of its tensors' names: "encoder.", and "decoder." or "head." if present."""
        return PARTS.get(self.kind, ("encoder.",))

    @property
    def description(self) -> layout.Description:
        """What is written with its weights."""
        return layout.Description(self.kind, self.config, self.classes, self.preprocessing)

    def read(self, part: str = "") -> Iterator[tuple[str, Tensor]]:
        """Read the tensors whose names begin with ``part``, a few at a time, as they are stored.

        Raises:
            CheckpointError: A tensor holds values that are not finite, or negative variances.
        """
        broken = []
        read = partial(_take, self._file, self._names)
        for name, tensor in self.format.to_ours(self._names, read, part):
            values = tensor.float()  # as a model will hold it
            negative = name.endswith("running_var") and bool((values < 0).any())
            if negative or not values.isfinite().all():
                broken.append(name)
            yield name, tensor
        if broken:
            raise CheckpointError(
                f"{self.origin}: holds values that are not finite, or negative variances: "
                f"{', '.join(broken[:5])}"
                f"{f' and {len(broken) - 5} more' if len(broken) > 5 else ''}"
            )

    def encoder_alone(self) -> Checkpoint:
        """The same without its decoder or head."""
        shapes = {n: shape for n, shape in self.shapes.items() if n.startswith("encoder.")}
        return replace(self, shapes=shapes, unknown=[])

    def check(self, parts: tuple[str, ...]) -> None:
        """Check that the tensors of these parts fit the configuration.

        Raises:
            CheckpointError: They do not; the message lists the tensors and the likely cause.
        """
        unknown = self.unknown
        if parts == ("encoder.",):  # whatever head the encoder was trained with
            unknown = [name for name in unknown if name.startswith(self.format.encoder)]
        try:
            check_fit(self.config, self.shapes, parts, unknown)
        except CheckpointError as error:
            raise CheckpointError(f"{self.origin}: {error}") from None
        means = len(self.preprocessing.mean)
        if means != self.config.in_channels:
            raise CheckpointError(
                f"{self.origin}: its preprocessing has {means} means, but the model takes "
                f"{self.config.in_channels} channels; correct {layout.PREPROCESSING_FILE}"
            )


def open_checkpoint(source: str | Path, **options: Unpack[hub.HubOptions]) -> Checkpoint:
    """Open a model without reading its weights.

    Args:
        source: A folder, a file of weights, the Hub id of a model (OWNER/NAME or
            OWNER/NAME@REVISION), or the name of the model that ships inside the package.
        **options: For the Hub; see `segformer.checkpoints.hub.download`.

    Raises:
        CheckpointError: There is no such model, it is damaged, or it is not a SegFormer.
    """
    unexpected = options.keys() - hub.HubOptions.__annotations__.keys()
    if unexpected:
        known = ", ".join(hub.HubOptions.__annotations__)
        raise TypeError(f"unexpected option {', '.join(unexpected)}; the options are {known}")
    path, origin = find(source, **options), str(source)
    file = _open_weights(path)
    folder = _describing_folder(path)
    recognized = recognize(file.stored)
    if recognized is None:
        some = ", ".join(map(printable, islice(file.stored, 3)))
        raise CheckpointError(
            f"{file.path}: not a SegFormer: none of its {len(file.stored)} tensors is the first "
            f"convolution of the encoder (their names: {some}, ...)"
        )
    format, names, outside = recognized
    if format is KERASHUB and not any(name.startswith("output_") for name in names):
        # A SegFormerBackbone ends before the classifier: only its encoder can be used
        decoder = {name for name in names if name.startswith(("mlp_blocks.", "linear_fuse."))}
        outside += [names[name] for name in decoder]
        names = {name: stored for name, stored in names.items() if name not in decoder}
    try:
        unread = dict(format.to_ours(names, partial(_shape_alone, file, names)))
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from None
    for name, tensor in unread.items():
        if tensor.dtype not in _FLOATS and not name.endswith("num_batches_tracked"):
            raise CheckpointError(
                f"{file.path}: {name}: of type {tensor.dtype}, not floating-point weights"
            )
    shapes = {name: tuple(tensor.shape) for name, tensor in unread.items()}
    unknown = format.unknown(names)
    unused = [name for name in names if not format.knows(name) and name not in unknown]
    entries, preprocessing_entries = _described(folder, file)
    if entries is not None:
        described = folder / layout.CONFIG_FILE if folder else file.path
        config, classes = layout.config_from_hub(entries, described)
    else:
        try:
            config = infer_config(shapes, format.eps, format.hidden_act)
        except CheckpointError as error:
            raise CheckpointError(f"{file.path}: {error}") from None
        classes = _classes_of_training_code(file.metadata, config.num_classes)
    if preprocessing_entries is not None:
        described = folder / layout.PREPROCESSING_FILE if folder else file.path
        preprocessing = layout.preprocessing_from_hub(preprocessing_entries, described)
    else:
        preprocessing = Preprocessing.for_channels(config.in_channels)
        if entries is None:  # the paper's protocol, which all codebases but transformers follow
            preprocessing = replace(preprocessing, size=512, multiple=32)
    return Checkpoint(
        origin=origin,
        path=file.path,
        files=file.files,
        folder=folder,
        format=format,
        shapes=shapes,
        config=config,
        classes=classes,
        preprocessing=preprocessing,
        unknown=[printable(name) for name in unknown],
        unused=[printable(name) for name in (*unused, *outside)],
        license=hub.license(folder) if folder else None,
        _names=names,
        _file=file,
    )


def find(source: str | Path, **options: Unpack[hub.HubOptions]) -> Path:
    """The folder or file of a model; downloads it if it is not here.

    Of the folder of a training run, it is the folder of the run's best model.

    Raises:
        CheckpointError: There is no such model.
    """
    path = Path(source)
    with suppress(OSError):  # a name too long for the file system does not exist either
        if path.is_dir():
            return _inside_run(path)
        if path.is_file():
            return path
    if str(source) == SHIPPED:
        return ASSETS / SHIPPED
    file_name = path.suffix in READ_SUFFIXES and path.parent.exists()
    if hub.is_model_id(str(source)) and not file_name:
        return hub.download(str(source), **options)
    raise CheckpointError(
        f"{source}: no such model: it is neither a folder nor a file. The model that ships inside "
        f"is called {SHIPPED!r}, and models on the Hub OWNER/NAME"
    )


def _inside_run(folder: Path) -> Path:
    """The folder itself, or that of the model to use from the folder of a training run."""
    if not any((folder / name).is_file() for name in (layout.CONFIG_FILE, *layout.WEIGHT_FILES)):
        for name in ("best", "last"):  # there is no best model without validation
            if (folder / name / layout.CONFIG_FILE).is_file():
                logger.info(f"{folder}: the folder of a training run; using {folder / name}")
                return folder / name
    return folder


def _take(file: TensorFile, names: Mapping[str, str], name: str) -> Tensor:
    return file.take(names[name])


def _shape_alone(file: TensorFile, names: Mapping[str, str], name: str) -> Tensor:
    stored = file.stored[names[name]]
    if stored.dtype is None:
        raise ValueError(f"{name}: stored in a type that PyTorch does not have")
    return torch.empty(stored.shape, dtype=stored.dtype, device="meta")


def _open_weights(path: Path) -> TensorFile:
    """The weights of a folder, safetensors before pickles, or of a file."""
    if path.is_file():
        beside = path.with_name(keras_config.TASK_WEIGHTS_FILE)
        if path.name != keras_config.WEIGHTS_FILE or not beside.is_file():
            return open_tensors(path)
        return Shards((open_tensors(path), open_tensors(beside)))  # backbone and head
    for name in layout.WEIGHT_FILES:
        if (path / name).is_file():
            return _open_weights(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            return _open_shards(index)
    files = _weight_files(path)
    if len(files) == 1:
        return open_tensors(files[0])
    if files:
        names = ", ".join(file.name for file in files[:6])
        raise CheckpointError(
            f"{path}: holds several files of weights; give the path of one of them: {names}"
        )
    raise CheckpointError(f"{path}: there is no {layout.WEIGHTS_FILE} in this folder")


def _open_shards(index: Path) -> Shards:
    """The files that an index names; all lie beside it."""
    weight_map = layout.read_json(index).get("weight_map")
    names = {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else set()
    if not names:
        raise CheckpointError(f"{index}: there is no weight_map")
    missing = sorted(names - {path.name for path in index.parent.iterdir()})
    if missing:
        raise CheckpointError(f"{index}: {printable(missing[0])} is not in this folder")
    return Shards(open_tensors(index.parent / name) for name in sorted(names))


def _weight_files(folder: Path) -> list[Path]:
    """Files of weights in a folder. Hidden ones are left by writers that were killed."""
    try:
        files = sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() in READ_SUFFIXES and not file.name.startswith(".")
        )
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror or error}") from None
    return [file for file in files if file.suffix != ".ckpt"] or files


def _describing_folder(path: Path) -> Path | None:
    """The folder whose JSON files describe a model, if any: its own, or that its file lies in."""
    if path.is_dir():
        return path
    in_layout = path.name in layout.WEIGHT_FILES and (path.parent / layout.CONFIG_FILE).is_file()
    return path.parent if in_layout else None


def _described(
    folder: Path | None, file: TensorFile
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Configuration and preprocessing, from a folder's files or from inside the file of weights."""
    if "keras" in file.metadata:
        return keras_config.hub_entries(file.metadata["keras"], None, file.path)
    own = file.metadata.get("segformer")
    if isinstance(own, str):
        try:
            own = json.loads(own)
        except (ValueError, RecursionError):
            own = None
    try:
        own = json.loads(json.dumps(own)) if isinstance(own, dict) else {}
    except (TypeError, ValueError, RecursionError):  # not written by this package
        own = {}
    config, preprocessing = own.get("config"), own.get("preprocessing")
    if folder is not None and (folder / layout.CONFIG_FILE).is_file():
        entries = layout.read_json(folder / layout.CONFIG_FILE)
        if keras_config.is_keras(entries):
            return keras_config.hub_entries(entries, folder, folder / layout.CONFIG_FILE)
        if "_model_class" not in entries:
            config = entries
        elif entries["_model_class"] != "Segformer":
            name = printable(str(entries["_model_class"]))
            raise CheckpointError(
                f"{folder}: a {name} of segmentation_models.pytorch, not a Segformer"
            )
    if folder is not None and (folder / layout.PREPROCESSING_FILE).is_file():
        preprocessing = layout.read_json(folder / layout.PREPROCESSING_FILE)
    return config, preprocessing


def _classes_of_training_code(metadata: Mapping[str, Any], num_classes: int) -> ClassSet:
    """Class names and colors that OpenMMLab's and NVlabs' training codes store in ``meta``."""
    classes = ClassSet.numbered(num_classes)
    inner = metadata.get("dataset_meta")
    source = inner if isinstance(inner, Mapping) else metadata
    names = source.get("classes", source.get("CLASSES"))
    palette = source.get("palette", source.get("PALETTE"))
    try:
        named = isinstance(names, list | tuple) and all(isinstance(n, str | int) for n in names)
        if named and len(names) == len(classes):
            distinct = layout.distinct(dict(enumerate(map(str, names))))
            classes = replace(classes, names=tuple(distinct.values()))
        if palette is not None and len(palette) == len(classes):
            colors = tuple((int(r), int(g), int(b)) for r, g, b in palette)
            if all(0 <= value <= 255 for color in colors for value in color):
                classes = replace(classes, palette=colors)
    except (TypeError, ValueError, OverflowError):
        pass  # these are not names or colors; the numbered classes serve as well
    return classes
