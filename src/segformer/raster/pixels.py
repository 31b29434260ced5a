"""From the stored values of a scene to what the model sees: as for an image that is read whole.

Legend: H W pixels, C channels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segformer.image import ImageArray, Preprocessing, WrongChannels, read_image
from segformer.image.scene import Scene
from segformer.image.scene_grid import Window
from segformer.image.value_range import stored_range


class ScenePixels:
    """Reads windows of a scene as a model sees them.

    Values are those that `segformer.image.read_image` gives for the whole file: scaled to 8 bits
    for a model of 8-bit images, else as stored. What depends on all pixels of a file there, such
    as whether floats end at 1, depends on a sample of them here.

    Args:
        scene: The scene.
        preprocessing: That of the model.
        channels: Number of channels that the model takes.
        value_range: Stored values that mean black and white, for a model of 8-bit images.
        own_statistics: Normalize by the mean and standard deviation of the scene in place of those
            of the model.

    Raises:
        WrongChannels: The scene has another number of bands.
        UnreadableImage: The range of the values is needed and unknown.
    """

    def __init__(
        self,
        scene: Scene,
        preprocessing: Preprocessing,
        channels: int,
        *,
        value_range: tuple[float, float] | None = None,
        own_statistics: bool = False,
    ):
        found = len(scene.bands)
        if found != channels and (found, channels) not in ((1, 3), (3, 1)):
            names = ", ".join(scene.bands)
            raise WrongChannels(
                scene.name, channels, found, f" bands ({names}); choose them with --bands"
            )
        self.scene, self.channels = scene, channels
        self._as_8_bit = preprocessing.expects_8_bit and not own_statistics
        if own_statistics:
            means, stds = scene.statistics()
            if found != channels:  # gray as color, or color as gray
                means = (sum(means) / found,) * channels
                stds = (sum(stds) / found,) * channels
            preprocessing = replace(preprocessing, mean=means, std=stds, rescale=1.0)
        self.value_range = value_range
        if self._as_8_bit and scene.dtype != np.uint8:
            if channels not in (1, 3):
                preprocessing = _of_stored_values(scene, preprocessing)
            elif value_range is None:
                self.value_range = self._find_range()
        self.preprocessing = preprocessing

    def read(self, window: Window) -> tuple[ImageArray, NDArray[np.bool_]]:
        """Stored pixels (H, W, C) of a window of the full grid, and (H, W) where there is data."""
        origin = self.scene.window
        return self.scene.read(window.moved(-origin.top, -origin.left), surroundings=True)

    def wanted(self, window: Window) -> NDArray[np.bool_]:
        """(H, W) whether the pixels of a window of the full grid belong to the scene."""
        origin = self.scene.window
        return self.scene.wanted(window.moved(-origin.top, -origin.left))

    def normalize(self, pixels: ImageArray, valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(H, W, C) stored pixels -> what the model takes; the mean where there is no data."""
        values = read_image(
            pixels,
            self.channels,
            as_8_bit=self._as_8_bit,
            value_range=self.value_range,
            nodata=self.scene.nodata,
        )
        normalized = self.preprocessing.normalize(values)
        hidden = ~valid
        if values.dtype.kind == "f":  # NaN is the mean already, the other bands stay
            hidden &= np.isfinite(values).all(2)
        if hidden.any():
            normalized[hidden] = 0
        return normalized

    def _find_range(self) -> tuple[float, float]:
        declared = [fact.highest for fact in self.scene.facts]
        known = [value for value in declared if value is not None and not self.scene.scaled]
        highest = max(known) if known and len(known) == len(declared) else None
        if highest is None and self.scene.dtype == np.uint16:
            return 0.0, 65535.0
        return stored_range(self.scene.sample(), highest, self.scene.name)


def _of_stored_values(scene: Scene, preprocessing: Preprocessing) -> Preprocessing:
    """The same normalization, which does not judge each window by whether its values end at 1."""
    sample = scene.sample()
    if scene.dtype.kind == "f" and len(sample):
        preprocessing.normalize(sample[None])  # refuses values of 0..1
    factor = preprocessing.rescale
    return replace(
        preprocessing,
        rescale=1.0,
        mean=tuple(value / factor for value in preprocessing.mean),
        std=tuple(value / factor for value in preprocessing.std),
    )
