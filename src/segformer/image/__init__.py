"""Reading images and masks as people store them, and turning images into a model's input."""

from segformer.image.channels import missing_pixels
from segformer.image.orientation import SIDEWAYS, exif_orientation, jpeg_size, turn_upright
from segformer.image.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RESAMPLING,
    ImageArray,
    Preprocessing,
    center_crop,
    find_rgb,
    resize,
)
from segformer.image.reading import (
    IMAGE_SUFFIXES,
    LOSSY_SUFFIXES,
    MASK_SUFFIXES,
    ImageFiles,
    ImageSource,
    image_name,
    read_image,
    read_mask,
    read_mask_channels,
    read_mask_or_colors,
    source_files,
)
from segformer.image.scene_tile import SceneTile
from segformer.image.stored import UnreadableImage, WrongChannels

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_SUFFIXES",
    "LOSSY_SUFFIXES",
    "MASK_SUFFIXES",
    "RESAMPLING",
    "SIDEWAYS",
    "ImageArray",
    "ImageFiles",
    "ImageSource",
    "Preprocessing",
    "SceneTile",
    "UnreadableImage",
    "WrongChannels",
    "center_crop",
    "exif_orientation",
    "find_rgb",
    "image_name",
    "jpeg_size",
    "missing_pixels",
    "read_image",
    "read_mask",
    "read_mask_channels",
    "read_mask_or_colors",
    "resize",
    "source_files",
    "turn_upright",
]
