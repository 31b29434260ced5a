"""From images of any size and kind to predictions.

Legend: H W pixels of the image as it is, h w of what the model sees, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segformer.image import (
    ImageArray,
    ImageFiles,
    ImageSource,
    Preprocessing,
    SceneTile,
    image_name,
    read_image,
    resize,
)
from segformer.prediction.config import SMALLEST_SIDE, PredictConfig, PredictOptions
from segformer.prediction.label_maps import logits_to_label_map
from segformer.prediction.notebook import with_progress_bar
from segformer.prediction.prediction import Prediction
from segformer.prediction.reading_ahead import PreparedImage, read_ahead
from segformer.prediction.runtimes.base import (
    Runtime,
    as_tensors,
    default_readers,
    is_out_of_memory,
    mirrored,
    stack,
)
from segformer.prediction.runtimes.exported import ExportedModel
from segformer.prediction.runtimes.opening import open_for_prediction
from segformer.prediction.sliding import count_windows, slide
from segformer.progress import in_notebook

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from segformer.model.segformer import SegFormer


class Predictor:
    """Segments images with one model, as the model is at each call.

    The model is not changed: not its mode, its device or its dtype. If it is trained further or
    other weights are loaded into it, later predictions are those of the new weights.

    The model's own preprocessing is used, that which it was trained or published with. Options
    override its resizing.

    Args:
        model: A model, or the folder, file or Hub id to load it from. Default: the model that
            ships with the package. A folder that `segformer export` wrote runs without PyTorch.
        config: How images are seen and run.
        **options: Fields of `PredictConfig`, such as ``short_side=512`` or ``flip=True``; they
            override those of ``config``.

    Attributes:
        reader: Reads an image, (H, W, C), in place of `segformer.image.read_image`; for images that
            are not files.
        logits_filter: Called with each image (H, W, C) and the logits (K, h, w) of its views, in
            order; returns the logits that the prediction is made of.
        on_logits: Called with each prediction, the logits (K, h, w) of its first view, and the
            height and width of that view in pixels.

    Raises:
        ValueError: Options that contradict each other or are not possible.
        CheckpointError: The model cannot be loaded.

    Example:
        >>> predictor = Predictor()
        >>> prediction = predictor("portrait.jpg")
        >>> prediction.label_map.shape  # the image's own height and width
    """

    def __init__(
        self,
        model: SegFormer | str | Path | None = None,
        config: PredictConfig | None = None,
        **options: Unpack[PredictOptions],
    ):
        unknown = options.keys() - PredictConfig.__dataclass_fields__.keys()
        if unknown:
            known = ", ".join(PredictConfig.__dataclass_fields__)
            raise ValueError(f"no such options: {', '.join(sorted(unknown))}; there are {known}")
        self.config = replace(config or PredictConfig(), **options)  # type: ignore[arg-type]
        self.model: SegFormer | ExportedModel
        self.runtime: Runtime
        self.model, self.runtime = open_for_prediction(model, self.config, "segmenter")
        on_cpu = str(self.runtime.device) == "cpu"
        self.batch_size = self.config.batch_size or (1 if on_cpu else 8)
        self.reader: Callable[[ImageSource], ImageArray] | None = None
        self.logits_filter: Callable[[ImageArray, list[Any]], list[Any]] | None = None
        self.on_logits: Callable[[Prediction, Any, tuple[int, int]], None] | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """The model's preprocessing, with the size that the options ask for."""
        config = self.config
        if config.size is not None:
            return replace(self.model.preprocessing, size=config.size)
        if config.short_side is not None:
            return replace(self.model.preprocessing, size=config.short_side)
        if config.window is not None:
            return replace(self.model.preprocessing, size=None, multiple=1)
        return self.model.preprocessing

    def __call__(self, source: ImageSource) -> Prediction:
        """Segment one image.

        Args:
            source: Path, encoded bytes, PIL image, array (H, W, C), or a list of paths: one image
                with a file for each channel, in the order of the model's channels.

        Raises:
            UnreadableImage: The image cannot be read; the message names it.
            MemoryError: The image does not fit into memory.
        """
        (prediction,) = self._predict([self._prepare(source)])
        return prediction

    def stream(
        self,
        sources: Iterable[ImageSource],
        *,
        on_error: Callable[[ImageSource, Exception], None] | None = None,
        on_windows: Callable[[int, int], None] | None = None,
        readers: int | None = None,
        confidence_pixels: int = 0,
        progress: bool = True,
    ) -> Iterator[Prediction]:
        """Segment many images, in order; threads read and prepare images ahead of the model.

        Args:
            sources: Images, as for a single call; only as many as the readers need are held.
            on_error: Called with an image and the error if it cannot be read or does not fit into
                memory; the image is then skipped. Default: the error is raised.
            on_windows: Called during an image that is run in windows, with the number of windows
                done and of all of this image.
            readers: Number of threads that read images. Default: 2 if the model runs on the CPU,
                else one for each core, at most 8.
            confidence_pixels: Give each prediction the confidence of at most so many pixels, on a
                regular grid (``Prediction.sampled_confidence``).
            progress: Show a progress bar if this runs in a notebook.

        Yields:
            A prediction for each image that was not skipped.
        """
        if progress and in_notebook():
            stream = partial(
                self.stream,
                on_windows=on_windows,
                readers=readers,
                confidence_pixels=confidence_pixels,
                progress=False,
            )
            yield from with_progress_bar(stream, sources, on_error)
            return
        readers = default_readers(self.runtime.device) if readers is None else readers
        # Of images in windows, the windows make the batches
        at_once = 1 if self.config.window is not None else self.batch_size
        with closing(
            read_ahead(sources, self._prepare, on_error, readers=readers, at_once=at_once)
        ) as images:
            for _, alike in groupby(images, key=lambda prepared: prepared.shapes):
                while batch := list(islice(alike, at_once)):
                    yield from self._finish(batch, on_error, on_windows, confidence_pixels)

    def logits(self, source: ImageSource) -> Any:
        """Logits of an image at the first scale, before upsampling.

        Args:
            source: An image, as for a call.

        Returns:
            Logits (K, ceil(h / 4), ceil(w / 4)) of the resized image (h, w): a tensor on the device
            of the model, or an array from other runtimes than PyTorch.

        Raises:
            UnreadableImage: The image cannot be read or does not fit the model.
        """
        return self._run([self._view(self._read(source), self.config.scales[0])], None)[0]

    def _prepare(self, source: ImageSource) -> PreparedImage:
        image = self._read(source)
        views = [self._view(image, scale) for scale in self.config.scales]
        return PreparedImage(source, image, views)

    def _read(self, source: ImageSource) -> ImageArray:
        if self.reader is not None:
            return self.reader(source)
        return read_image(
            source,
            self.model.config.in_channels,
            as_8_bit=self.preprocessing.expects_8_bit,
            value_range=self.config.value_range,
            nodata=self.preprocessing.nodata,
        )

    def _view(self, image: ImageArray, scale: float) -> ImageArray:
        """A view; `_run` normalizes it window by window where that takes less memory."""
        view = self._resize(image, scale)
        # Floats are normalized here: whether they are 0..1 is seen from the whole image only
        if self.config.window is not None and view.dtype.kind != "f":
            return view
        return self.preprocessing.normalize(view)

    def _resize(self, image: ImageArray, scale: float) -> ImageArray:
        preprocessing = self.preprocessing
        height, width = preprocessing.target_size(*image.shape[:2])
        size = tuple(max(SMALLEST_SIDE, round(side * scale)) for side in (height, width))
        return resize(image, (size[0], size[1]), preprocessing.resample)

    def _finish(
        self,
        batch: list[PreparedImage],
        on_error: Callable[[ImageSource, Exception], None] | None,
        on_windows: Callable[[int, int], None] | None,
        confidence_pixels: int,
    ) -> Iterator[Prediction]:
        """Predictions of images of one size; one by one where together they do not fit."""
        if len(batch) > 1:
            try:
                predictions = self._predict(batch, None, confidence_pixels)
            except MemoryError:
                pass
            else:
                yield from predictions
                return
        for prepared in batch:
            try:
                (prediction,) = self._predict([prepared], on_windows, confidence_pixels)
            except (ValueError, MemoryError) as error:
                if on_error is None:
                    raise
                on_error(prepared.source, error)
            else:
                yield prediction

    def _predict(
        self,
        batch: list[PreparedImage],
        on_windows: Callable[[int, int], None] | None = None,
        confidence_pixels: int = 0,
    ) -> list[Prediction]:
        """Predictions of images whose views are of the same sizes."""
        try:
            views = self._tta_logits(batch, on_windows)
            predictions = []
            for i, prepared in enumerate(batch):
                own = [logits[i] for logits in views]
                if self.logits_filter is not None:
                    own = self.logits_filter(prepared.image, own)
                predictions.append(self._to_prediction(prepared, own, confidence_pixels))
                if self.on_logits is not None:
                    height, width, _ = prepared.views[0].shape
                    self.on_logits(predictions[-1], own[0], (height, width))
            return predictions
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            source = batch[0].source
            height, width = batch[0].image.shape[:2]
            raise MemoryError(
                f"{image_name(source)}: "
                f"{width} x {height} pixels do not fit into memory{self._advice()}"
            ) from None

    def _advice(self) -> str:
        """What takes less memory than the options do."""
        config = self.config
        if config.window is None:
            return "; run it in windows, such as window=1024 (--window 1024)"
        if self.batch_size > 1:
            return "; run fewer windows at once, such as batch_size=1 (--batch-size 1)"
        if config.confidence or config.flip or config.scales != (1.0,):
            return "; run it without confidence, flip and scales"
        if config.window > 512:
            return "; run it in smaller windows, such as window=512 (--window 512)"
        return ""

    def _tta_logits(
        self, batch: list[PreparedImage], on_windows: Callable[[int, int], None] | None
    ) -> list[Any]:
        """Logits (B, K, h, w) of each view, those of its mirror image behind them."""
        on_batch = self._window_counter(batch[0], on_windows)
        logits = []
        for i in range(len(batch[0].views)):
            views = [prepared.views[i] for prepared in batch]
            logits.append(self._run(views, on_batch))
            if self.config.flip:
                views = [view[:, ::-1] for view in views]
                logits.append(mirrored(self._run(views, on_batch)))
        return logits

    def _window_counter(
        self, prepared: PreparedImage, on_windows: Callable[[int, int], None] | None
    ) -> Callable[[int], None] | None:
        """A function that adds up windows and passes on how many of how many are done."""
        window, stride = self.config.window, self.config.stride
        if on_windows is None or window is None or stride is None:
            return None
        views = (view.shape for view in prepared.views)
        count = sum(count_windows(height, width, window, stride) for height, width, _ in views)
        count *= 2 if self.config.flip else 1
        done = 0

        def advance(windows: int) -> None:
            nonlocal done
            done += windows
            on_windows(done, count)

        return advance

    def _to_prediction(
        self, prepared: PreparedImage, views: list[Any], confidence_pixels: int
    ) -> Prediction:
        """The prediction of an image from the logits (K, h, w) of its views."""
        size = (prepared.image.shape[0], prepared.image.shape[1])
        config, confidence = self.model.config, self.config.confidence
        about: dict[str, Any] = {
            "classes": self.model.classes,
            "image": prepared.image,
            "source": _files_of(prepared.source),
            "rgb_channels": self.preprocessing.rgb_channels,
        }
        if confidence_pixels and not config.multilabel:
            from segformer.prediction.confidence import sample_confidence

            about["sampled_confidence"] = sample_confidence(
                as_tensors(views), size, confidence_pixels
            )
        if config.multilabel:
            from segformer.prediction.multilabel import predict_masks

            return predict_masks(
                as_tensors(views), size, config.decision_thresholds, about, confidence=confidence
            )
        ids, probs = logits_to_label_map(views, size, config, confidence=confidence)
        return Prediction(label_map=ids, confidence=probs, **about)

    def _run(self, views: list[ImageArray], on_batch: Callable[[int], None] | None) -> Any:
        """Views of one size, (h, w, C) -> logits (B, K, ceil(h / 4), ceil(w / 4))."""
        if self.config.window is None or self.config.stride is None:
            return self.runtime(np.stack(views).transpose(0, 3, 1, 2))
        normalized = views[0].dtype.kind == "f"
        logits = [
            slide(
                view,
                self.config.window,
                self.config.stride,
                self.runtime,
                normalize=np.ascontiguousarray if normalized else self.preprocessing.normalize,
                batch_size=self.batch_size,
                on_windows=on_batch,
            )
            for view in views
        ]
        return stack(logits)


def _files_of(source: ImageSource) -> ImageFiles | None:
    """The file of an image, or the files of its channels; None for an image in memory."""
    if isinstance(source, SceneTile):
        return source
    if isinstance(source, (str, Path)):
        return Path(source)
    return tuple(map(Path, source)) if isinstance(source, (list, tuple)) else None
