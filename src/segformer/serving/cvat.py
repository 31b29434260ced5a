r"""An auto-annotation function for CVAT, run on the machine of the user.

    cvat-cli task auto-annotate 12 --function-module segformer.serving.cvat \
        -p model=str:runs/mine/best -p labels=str:car,road --allow-unmatched-labels

Legend: H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from segformer.data.coco_writer import is_background
from segformer.prediction.predictor import Predictor
from segformer.prediction.staged import StagedPredictor
from segformer.serving.label_matching import match_labels
from segformer.serving.polygons import outline

if TYPE_CHECKING:
    from PIL import Image


def create(model: str | None = None, labels: str = "", **options: Any) -> SegmentationFunction:
    """The function that CVAT's SDK and command line call.

    Args:
        model: Folder, file or Hub id of a model. Default: the model that ships with the package.
        labels: Labels of the task to annotate, separated by commas. Default: all classes of the
            model but the background.
        **options: Fields of `PredictConfig`, such as ``short_side=512``.

    Raises:
        ValueError: A label is no class of the model; the message lists both.
        ModuleNotFoundError: CVAT's SDK is not installed.
    """
    return SegmentationFunction(Predictor(model, **options), labels)


class SegmentationFunction:
    """A detection function of CVAT: one mask for each class in an image.

    Args:
        predictor: Model and options.
        labels: See `create`.

    Attributes:
        spec: The labels.
    """

    def __init__(self, predictor: Predictor, labels: str = ""):
        try:
            from cvat_sdk import auto_annotation as cvat
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "CVAT's SDK is not installed; pip install cvat-sdk brings it", name=error.name
            ) from None
        self._staged = StagedPredictor(predictor)
        classes = predictor.model.classes
        wanted = [label.strip() for label in labels.split(",") if label.strip()] or [
            name for name in classes.names if not is_background(name)
        ]
        self._labels = match_labels(wanted, classes)
        self._cvat = cvat
        self.spec = cvat.DetectionFunctionSpec(
            labels=[cvat.label_spec(name, i, type="mask") for i, name in self._labels.items()]
        )

    def detect(self, context: Any, image: Image.Image) -> Sequence[Any]:
        """The masks of an image, or polygons without their holes where CVAT wants polygons.

        With a confidence threshold, pixels below it are not annotated.
        """
        from cvat_sdk.masks import encode_mask

        threshold = context.conf_threshold
        prepared = self._staged.prepare(image)
        (prediction,) = self._staged.run([prepared], confidence=threshold is not None)
        shapes: list[Any] = []
        for class_id in self._labels:
            mask = prediction.mask(prediction.classes.names[class_id])
            if prediction.pixel_confidence is not None:
                mask = mask & (prediction.pixel_confidence >= (threshold or 0))
            if not mask.any():
                continue
            if context.conv_mask_to_poly:
                shapes += [
                    self._cvat.polygon(class_id, polygon.exterior.ravel().tolist())
                    for polygon in outline(mask)
                ]
            else:
                shapes.append(self._cvat.mask(class_id, encode_mask(mask)))
        return shapes
