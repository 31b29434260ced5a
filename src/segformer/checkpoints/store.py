"""Models on disk and on the Hub: any format in, the Hub layout or any format out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from segformer.checkpoints import hub, layout
from segformer.checkpoints.fit import FIRST_CONVOLUTION, check_fit, infer_config
from segformer.checkpoints.formats import FORMATS, HUB, Format, recognize
from segformer.checkpoints.tensors import (
    WEIGHT_SUFFIXES,
    CheckpointError,
    Shards,
    TensorFile,
    open_tensors,
)
from segformer.classes import ClassSet
from segformer.config import SegFormerConfig
from segformer.files import whole_file, write_json
from segformer.image import Preprocessing
from segformer.model.decoder import MLPDecoder
from segformer.model.encoder import MixTransformer
from segformer.model.segformer import SegFormer, SegFormerClassifier

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = "human-parsing-b0"
"""Name of the model that ships inside the package."""

_PART = {"segmenter": "decoder.", "classifier": "head."}
_ARCHITECTURES = {
    "segmenter": "SegformerForSemanticSegmentation",
    "classifier": "SegformerForImageClassification",
    "encoder": "SegformerModel",
}

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Whole = TypeVar("Whole", SegFormer, SegFormerClassifier)


@dataclass
class Checkpoint:
    """A model on disk, opened: everything but the weights is read.

    Attributes:
        origin: What to call it in messages: a path, or a Hub id.
        path: The file of its weights.
        format: Whose names its tensors have.
        shapes: Of the tensors, by their names here.
        config: Of the model, as its file tells or its tensors show.
        classes: Its classes; numbered where no file names them.
        preprocessing: How images become its input.
        unknown: Names in the file that no module has.
        unused: Names in the file that inference does not use.
        license: What its card states.
    """

    origin: str
    path: Path
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
        for kind, part in _PART.items():
            if any(name.startswith(part) for name in self.shapes):
                return kind
        return "encoder"

    def read(self, part: str = "") -> Iterator[tuple[str, Tensor]]:
        """Read the tensors of a part of the model, a few at a time, as they are stored.

        Raises:
            CheckpointError: One holds values that are not finite.
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
        """Raise a CheckpointError unless the tensors of these parts fit the configuration."""
        unknown = self.unknown
        if parts == ("encoder.",):  # whatever head it was trained with
            unknown = [name for name in unknown if name.startswith(self.format.encoder)]
        try:
            check_fit(self.config, self.shapes, parts, unknown)
        except CheckpointError as error:
            raise CheckpointError(f"{self.origin}: {error}") from None
        means = len(self.preprocessing.mean)
        if means != self.config.in_channels:
            raise CheckpointError(
                f"{self.origin}: its preprocessing has {means} means, the model takes "
                f"{self.config.in_channels} channels; correct {layout.PREPROCESSING_FILE}"
            )


def open_checkpoint(source: str | Path, **options: Any) -> Checkpoint:
    """Open a model without reading its weights.

    Args:
        source: A folder, a file of weights, a Hub id such as ``nvidia/segformer-b0-finetuned-
            ade-512-512`` (with ``@revision`` behind it, if need be), or the name of the model
            that ships inside.
        **options: For the Hub; see `segformer.checkpoints.hub.download`.

    Raises:
        CheckpointError: There is no such model, or it is none of SegFormer's.
    """
    unexpected = options.keys() - hub.OPTIONS
    if unexpected:
        raise TypeError(f"no such options: {', '.join(unexpected)}; there are {hub.OPTIONS}")
    path, origin = find(source, **options), str(source)
    folder = path if path.is_dir() else path.parent
    file = _open_weights(path)
    recognized = recognize(file.stored)
    if recognized is None:
        some = ", ".join(list(file.stored)[:3])
        raise CheckpointError(
            f"{file.path}: no SegFormer: none of the {len(file.stored)} tensors is its encoder's "
            f"first convolution (they are called {some}, ...)"
        )
    format, names, outside = recognized
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
    entries, preprocessing_entries = _described(path, file)
    if entries is not None:
        described = folder / layout.CONFIG_FILE if path.is_dir() else file.path
        config, classes = layout.config_from_hub(entries, described)
    else:
        try:
            config = infer_config(shapes, format.eps)
        except CheckpointError as error:
            raise CheckpointError(f"{file.path}: {error}") from None
        classes = _labels_of_training_code(file.metadata, config.num_classes)
    if preprocessing_entries is not None:
        described = folder / layout.PREPROCESSING_FILE if path.is_dir() else file.path
        preprocessing = layout.preprocessing_from_hub(preprocessing_entries, described)
    else:
        preprocessing = Preprocessing.for_channels(config.in_channels)
        if entries is None:  # the protocol of the paper, which all but transformers follow
            preprocessing = replace(preprocessing, size=512, multiple=32)
    return Checkpoint(
        origin,
        file.path,
        format,
        shapes,
        config,
        classes,
        preprocessing,
        unknown,
        unused + outside,
        hub.license(folder) if path.is_dir() else None,
        names,
        file,
    )


def load(
    source: str | Path,
    *,
    classes: ClassSet | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    **options: Any,
) -> SegFormer:
    """Load a segmentation model.

    Args:
        source: As for `open_checkpoint`.
        classes: Other classes than the model's own.
        num_classes: Another number of classes: the classifier, or the whole decoder where there
            is none, starts from fresh weights, and that is said.
        in_channels: Another number of channels; see `adapt_in_channels`.
        **options: For the Hub; see `segformer.checkpoints.hub.download`.

    Returns:
        The model in float32, in evaluation mode, with its labels and preprocessing.

    Raises:
        CheckpointError: Something is missing, broken, or does not fit.
    """
    checkpoint = open_checkpoint(source, **options)
    return assemble(SegFormer, checkpoint, classes, num_classes, in_channels)


def load_classifier(
    source: str | Path,
    *,
    classes: ClassSet | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    **options: Any,
) -> SegFormerClassifier:
    """Load a classifier; arguments and errors as for `load`."""
    checkpoint = open_checkpoint(source, **options)
    return assemble(SegFormerClassifier, checkpoint, classes, num_classes, in_channels)


def load_encoder(
    source: str | Path,
    *,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    in_channels: int | None = None,
    **options: Any,
) -> MixTransformer:
    """Load the encoder of any model, whatever head it was trained with.

    Args:
        source: As for `open_checkpoint`.
        out_indices: Which stages' maps to return.
        in_channels: Another number of channels; see `adapt_in_channels`.
        **options: For the Hub; see `segformer.checkpoints.hub.download`.

    Raises:
        CheckpointError: Something is missing, broken, or does not fit.
    """
    checkpoint = open_checkpoint(source, **options)
    checkpoint.check(("encoder.",))
    channels = checkpoint.config.in_channels if in_channels is None else in_channels
    with torch.device("meta"):
        encoder = MixTransformer(replace(checkpoint.config, in_channels=channels), out_indices)
    tensors = _floats(checkpoint.read("encoder."), channels)
    encoder.load_state_dict(
        {name.removeprefix("encoder."): tensor for name, tensor in tensors}, assign=True
    )
    return encoder.eval()


def save(
    model: SegFormer | SegFormerClassifier, folder: str | Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write a model in the Hub layout; transformers loads it as it is.

    Each file appears whole or not at all, the weights first. A model with OpenMMLab's decoder is
    written in the same manner, but only this package can read that.

    Args:
        model: Not folded.
        folder: Made if it is not there; files in it of the same names are replaced.
        dtype: Of the stored weights; left out, as they are.

    Raises:
        ValueError: The model is folded.
    """
    if isinstance(model, SegFormer) and not isinstance(model.decoder, MLPDecoder):
        raise ValueError("a folded model cannot be saved; save the one it was folded from")
    kind = "segmenter" if isinstance(model, SegFormer) else "classifier"
    tensors = HUB.from_ours(model.state_dict())
    _write_folder(Path(folder), tensors, dtype, _describe(model, _ARCHITECTURES[kind]))


def convert(
    source: str | Path,
    destination: str | Path,
    format: str,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Checkpoint:
    """Write a model's weights with another codebase's names.

    Args:
        source: As for `open_checkpoint`.
        destination: A file (``.pth``, ``.pt``, ``.bin`` or ``.safetensors``); for "hf" and "smp"
            also a folder, with the configuration that they read.
        format: "hf", "nvlabs", "mmseg" or "smp".
        dtype: Of the stored weights; left out, as they are.
        **options: For the Hub; see `segformer.checkpoints.hub.download`.

    Returns:
        The source, opened.

    Raises:
        CheckpointError: The source cannot be read.
        ValueError: That codebase has no such model.
    """
    known = {entry.name: entry for entry in FORMATS}
    if format not in known:
        raise ValueError(f"no format {format!r}; there are {', '.join(known)}")
    target, destination = known[format], Path(destination)
    checkpoint = open_checkpoint(source, **options)
    parts = tuple(part for kind, part in _PART.items() if checkpoint.kind == kind)
    checkpoint.check(("encoder.", *parts))
    config = checkpoint.config
    if checkpoint.kind == "segmenter" and config.decoder != target.decoder:
        raise ValueError(
            f"{source}: {target.title} has no decoder of this kind ({config.decoder}); its own is "
            f"{target.decoder}. SegFormer.save_pretrained writes it for this package"
        )
    tensors = target.from_ours(dict(checkpoint.read()))
    if checkpoint.kind == "encoder" or (checkpoint.kind == "classifier" and target is not HUB):
        tensors = {n.removeprefix(target.encoder): tensor for n, tensor in tensors.items()}
    description = _describe(checkpoint, _ARCHITECTURES[checkpoint.kind])
    if destination.suffix.lower() in WEIGHT_SUFFIXES:
        if destination.is_dir():
            raise ValueError(f"{destination}: a folder is there; name a file")
        _write_file(destination, tensors, dtype, description)
    elif target is HUB:
        _write_folder(destination, tensors, dtype, description)
    elif target.name == "smp" and checkpoint.kind == "segmenter":
        _write_smp_folder(destination, tensors, dtype, config, description)
    else:
        raise ValueError(f"{destination}: {target.title} keeps its models in files; end it in .pth")
    return checkpoint


def find(source: str | Path, **options: Any) -> Path:
    """Where a model is: its folder or file, fetched from the Hub if it is not here.

    Raises:
        CheckpointError: Nowhere.
    """
    path = Path(source)
    with suppress(OSError):  # a name too long for the file system is nowhere either
        if path.is_dir() or path.is_file():
            return path
    if str(source) == SHIPPED:
        return ASSETS / SHIPPED
    if hub.is_model_id(str(source)) and not path.parent.exists():
        return hub.download(str(source), **options)
    raise CheckpointError(
        f"{source}: no such model: neither a folder nor a file; the model that ships inside is "
        f"called {SHIPPED!r}, and models on the Hub OWNER/NAME"
    )


def adapt_in_channels(weight: Tensor, channels: int) -> Tensor:
    """The first convolution for another number of channels.

    The channels it knows stay; each further one starts as their mean, and where there are fewer all
    do. Everything is scaled by the ratio of the numbers, so that an image whose channels are all
    alike gives the same response as before: a gray image that of the same image in color.

    Args:
        weight: (C, channels it knows, k, k).
        channels: How many there are to be.
    """
    known = weight.shape[1]
    if channels == known:
        return weight
    mean = weight.mean(1, keepdim=True)
    kept = weight if channels > known else weight[:, :0]
    extra = mean.expand(-1, channels - kept.shape[1], -1, -1)
    return torch.cat([kept, extra], dim=1) * (known / channels)


def adapt_preprocessing(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """Statistics for another number of channels, after the manner of `adapt_in_channels`."""
    known = len(preprocessing.mean)
    if channels == known:
        return preprocessing

    def adapt(values: tuple[float, ...]) -> tuple[float, ...]:
        kept = values if channels > known else ()
        return kept + (sum(values) / known,) * (channels - len(kept))

    return replace(preprocessing, mean=adapt(preprocessing.mean), std=adapt(preprocessing.std))


def assemble(
    whole: type[Whole],
    checkpoint: Checkpoint,
    classes: ClassSet | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    *,
    reinitialize_classifier: bool = False,
) -> Whole:
    """A model of a class from a checkpoint, with fresh weights only where they were asked for.

    Args:
        whole: `SegFormer` or `SegFormerClassifier`.
        checkpoint: An opened model.
        classes: As for `load`.
        num_classes: As for `load`.
        in_channels: As for `load`.
        reinitialize_classifier: Re-initialize the classifier although it has as many classes.

    Raises:
        CheckpointError: Something is missing, broken, or does not fit.
    """
    if classes is not None and not isinstance(classes, ClassSet):
        classes = ClassSet(tuple(classes))
    kind = "segmenter" if whole is SegFormer else "classifier"
    part, found = _PART[kind], checkpoint.kind
    head = "decoder" if kind == "segmenter" else "head"
    if num_classes is None and classes is not None:
        as_many = found == kind and len(classes) == len(checkpoint.classes)
        num_classes = checkpoint.config.num_classes if as_many else len(classes)
    if found != kind and num_classes is None:
        loader = {"segmenter": "SegFormer", "classifier": "SegFormerClassifier"}
        other = loader.get(found, "MixTransformer")
        raise CheckpointError(
            f"{checkpoint.origin}: holds {'an' if found == 'encoder' else 'a'} {found} without "
            f"{head}; with num_classes=... the {head} starts from fresh weights, or load it with "
            f"{other}.from_pretrained"
        )
    checkpoint.check(("encoder.", part) if found == kind else ("encoder.",))
    source = checkpoint.config
    config = replace(
        source,
        num_classes=source.num_classes if num_classes is None else num_classes,
        in_channels=source.in_channels if in_channels is None else in_channels,
    )
    reinitialize = (
        found != kind or config.num_classes != source.num_classes or reinitialize_classifier
    )
    if classes is None:
        classes = None if reinitialize else checkpoint.classes
    preprocessing = adapt_preprocessing(checkpoint.preprocessing, config.in_channels)
    with torch.device("meta"):
        model = whole(config, classes, preprocessing)
    classifier = "decoder.classifier." if kind == "segmenter" else "head."
    if reinitialize:
        model.reset_head()
        if found != kind:
            why = f"it has no {head}; the {head} is re-initialized"
        else:
            why = (
                f"its {source.num_classes} classes are not these {config.num_classes}; "
                "the classifier is re-initialized"
            )
        logger.info(f"{checkpoint.origin}: {why}")
    if config.in_channels != source.in_channels:
        logger.info(
            f"{checkpoint.origin}: made for {source.in_channels} channels; its first convolution "
            f"is adapted to {config.in_channels}"
        )
    tensors = {
        name: tensor
        for name, tensor in _floats(_parts(checkpoint, part, found == kind), config.in_channels)
        if not (reinitialize and name.startswith(classifier))
    }
    model.load_state_dict(tensors, strict=False, assign=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.get_buffer("num_batches_tracked").is_meta:
            module.num_batches_tracked = torch.tensor(0)  # old files do not count them
    return model.eval()


def _parts(checkpoint: Checkpoint, part: str, with_head: bool) -> Iterator[tuple[str, Tensor]]:
    yield from checkpoint.read("encoder.")
    if with_head:
        yield from checkpoint.read(part)


def _floats(tensors: Iterator[tuple[str, Tensor]], channels: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors in float32, the first convolution for ``channels`` channels."""
    for name, tensor in tensors:
        if name == FIRST_CONVOLUTION:
            yield name, adapt_in_channels(tensor.float(), channels)
        else:
            yield name, tensor if name.endswith("num_batches_tracked") else tensor.float()


def _take(file: TensorFile, names: Mapping[str, str], name: str) -> Tensor:
    return file.take(names[name])


def _shape_alone(file: TensorFile, names: Mapping[str, str], name: str) -> Tensor:
    stored = file.stored[names[name]]
    return torch.empty(stored.shape, dtype=stored.dtype, device="meta")


def _open_weights(path: Path) -> TensorFile:
    """The weights of a folder, safetensors before pickles, or of a file."""
    if path.is_file():
        return open_tensors(path)
    for name in (layout.WEIGHTS_FILE, "pytorch_model.bin"):
        if (path / name).is_file():
            return open_tensors(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            try:
                shards = sorted(
                    {str(shard) for shard in layout.read_json(index)["weight_map"].values()}
                )
            except (KeyError, AttributeError):
                shards = []
            if not shards:
                raise CheckpointError(f"{index}: there is no weight_map")
            return Shards(open_tensors(path / Path(shard).name) for shard in shards)
    files = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    files = [file for file in files if file.suffix != ".ckpt"] or files
    if len(files) == 1:
        return open_tensors(files[0])
    if files:
        names = ", ".join(file.name for file in files[:6])
        raise CheckpointError(f"{path}: which of its files is the model? name one: {names}")
    inside = [name for name in ("best", "last") if (path / name / layout.CONFIG_FILE).is_file()]
    hint = f"; did you mean {path / inside[0]}?" if inside else ""
    raise CheckpointError(f"{path}: there is no {layout.WEIGHTS_FILE} in this folder{hint}")


def _described(path: Path, file: TensorFile) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Configuration and preprocessing, from the folder's files or from inside the file."""
    own = file.metadata.get("segformer")
    if isinstance(own, str):
        try:
            own = json.loads(own)
        except (ValueError, RecursionError):
            own = None
    try:
        own = json.loads(json.dumps(own)) if isinstance(own, dict) else {}
    except (TypeError, ValueError, RecursionError):  # not what this package wrote
        own = {}
    config, preprocessing = own.get("config"), own.get("preprocessing")
    if path.is_dir():
        if (path / layout.CONFIG_FILE).is_file():
            entries = layout.read_json(path / layout.CONFIG_FILE)
            if "_model_class" not in entries:
                config = entries
            elif entries["_model_class"] != "Segformer":
                raise CheckpointError(
                    f"{path}: a {entries['_model_class']} of segmentation_models.pytorch, "
                    "not a Segformer"
                )
        if (path / layout.PREPROCESSING_FILE).is_file():
            preprocessing = layout.read_json(path / layout.PREPROCESSING_FILE)
    return config, preprocessing


def _labels_of_training_code(metadata: Mapping[str, Any], num_classes: int) -> ClassSet:
    """Class names and colors that OpenMMLab's and NVlabs' training codes leave in ``meta``."""
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
        pass  # names are a courtesy: what is there is no list of names or colors
    return classes


def _describe(model: Any, architecture: str) -> dict[str, Any]:
    """What there is to know of a model beside its weights, as the Hub's JSON has it."""
    return {
        "config": layout.config_to_hub(model.config, model.classes, torch.float32, architecture),
        "preprocessing": layout.preprocessing_to_hub(model.preprocessing),
    }


def _stored(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Copies, since a view of a larger tensor, as keys and values are, cannot be stored."""
    stored = {}
    for name, tensor in tensors.items():
        target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        copied = tensor.detach().to("cpu", target, copy=True).contiguous()
        if target != tensor.dtype and tensor.isfinite().all() and not copied.isfinite().all():
            raise ValueError(f"{name}: holds values too large for {target}; store it as it is")
        stored[name] = copied
    return stored


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """`whole_file`, whose writers here tell of a full disk by errors of their own."""
    try:
        with whole_file(path) as partial_file:
            yield partial_file
    except (RuntimeError, SafetensorError) as error:
        raise OSError(f"{path}: cannot be written: {str(error).splitlines()[0]}") from None


def _write_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    description: dict[str, Any],
) -> None:
    stored = _stored(tensors, dtype)
    with _written(folder / layout.WEIGHTS_FILE) as partial_file:
        safetensors.torch.save_file(stored, partial_file, metadata={"format": "pt"})
    kept = next(iter(stored.values())).dtype
    config = description["config"] | {"dtype": str(kept).removeprefix("torch.")}
    write_json(folder / layout.CONFIG_FILE, config)
    write_json(folder / layout.PREPROCESSING_FILE, description["preprocessing"])


def _write_file(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    description: dict[str, Any],
) -> None:
    """One file; what its codebase has no place for lies in the metadata, where none looks."""
    stored = _stored(tensors, dtype)
    with _written(path) as partial_file:
        if path.suffix.lower() == ".safetensors":
            metadata = {"format": "pt", "segformer": json.dumps(description)}
            safetensors.torch.save_file(stored, partial_file, metadata=metadata)
        else:
            own = description["config"]["segformer"]
            meta = {"CLASSES": own["names"], "PALETTE": own["palette"], "segformer": description}
            torch.save({"meta": meta, "state_dict": stored}, partial_file)


def _write_smp_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    config: SegFormerConfig,
    description: dict[str, Any],
) -> None:
    """As its ``save_pretrained`` does: the arguments of its class beside the weights."""
    if config.variant is None:
        raise ValueError(f"{folder}: segmentation_models.pytorch has no encoder of these sizes")
    with _written(folder / layout.WEIGHTS_FILE) as partial_file:
        metadata = {"format": "pt", "segformer": json.dumps(description)}
        safetensors.torch.save_file(_stored(tensors, dtype), partial_file, metadata=metadata)
    arguments = {
        "_model_class": "Segformer",
        "encoder_name": f"mit_{config.variant}",
        "encoder_depth": 5,
        "encoder_weights": None,
        "decoder_segmentation_channels": config.decoder_hidden_size,
        "in_channels": config.in_channels,
        "classes": config.num_classes,
        "activation": None,
        "aux_params": None,
        "upsampling": 4,
    }
    write_json(folder / layout.CONFIG_FILE, arguments)
    write_json(folder / layout.PREPROCESSING_FILE, description["preprocessing"])
