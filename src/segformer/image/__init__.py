"""Reading images and masks as people store them, and turning images into a model's input."""

from segformer.image.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RESAMPLING,
    ImageArray,
    Preprocessing,
    center_crop,
    resize,
)
from segformer.image.reading import (
    IMAGE_SUFFIXES,
    LOSSY_SUFFIXES,
    MASK_SUFFIXES,
    SIDEWAYS,
    ImageSource,
    exif_orientation,
    jpeg_size,
    read_image,
    read_mask,
    read_mask_or_colors,
)
from segformer.image.stored import UnreadableImage, WrongChannels, turn_upright

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_SUFFIXES",
    "LOSSY_SUFFIXES",
    "MASK_SUFFIXES",
    "RESAMPLING",
    "SIDEWAYS",
    "ImageArray",
    "ImageSource",
    "Preprocessing",
    "UnreadableImage",
    "WrongChannels",
    "center_crop",
    "exif_orientation",
    "jpeg_size",
    "read_image",
    "read_mask",
    "read_mask_or_colors",
    "resize",
    "turn_upright",
]
