import io
import logging
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mangled import mangled_files
from segformer import Preprocessing
from segformer.image import (
    UnreadableImage,
    exif_orientation,
    read_image,
    read_mask,
    read_mask_or_colors,
    resize,
    turn_upright,
)
from segformer.image.warning_filters import ignoring


@pytest.fixture
def rgb() -> np.ndarray:
    y, x = np.mgrid[:30, :40]
    return np.stack([6 * x, 8 * y, 255 - 6 * x], axis=2).astype(np.uint8)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    "mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_every_color_mode_becomes_rgb(mode: str, rgb: np.ndarray) -> None:
    image = read_image(Image.fromarray(rgb).convert("L" if mode == "LA" else "RGB").convert(mode))
    assert image.shape == (30, 40, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, rgb: np.ndarray, orientation: int) -> None:
    stored = {
        1: rgb, 2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1],
        5: rgb.swapaxes(0, 1), 6: np.rot90(rgb, 1), 7: rgb[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(rgb, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(path), rgb)
    assert np.array_equal(read_image(path.read_bytes()), rgb)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
    image = read_image(saved(red, tmp_path / "a.jpg"))
    assert np.abs(image[8, 8].astype(int) - (200, 30, 30)).max() < 8


def test_transparency_is_dropped(tmp_path: Path, rgb: np.ndarray) -> None:
    rgba = np.dstack([rgb, np.full((30, 40), 7, np.uint8)])
    path = saved(Image.fromarray(rgba), tmp_path / "a.png")
    assert np.array_equal(read_image(path), rgb)
    assert np.array_equal(read_image(path, channels=4), rgba)
    assert np.array_equal(read_image(rgba), rgb)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    gray = (np.arange(1200).reshape(30, 40) * 54).astype(np.uint16)
    for suffix in (".png", ".tif"):
        path = saved(Image.fromarray(gray), tmp_path / f"a{suffix}")
        assert np.array_equal(read_image(path)[:, :, 1], np.rint(gray / 257))
    rgb16 = np.repeat(gray[:, :, None], 3, axis=2)
    assert np.array_equal(read_image(rgb16)[:, :, 2], np.rint(gray / 257))


def test_arrays_of_many_channels(tmp_path: Path) -> None:
    channels = np.random.default_rng(0).normal(size=(20, 30, 13)).astype(np.float32)
    np.save(tmp_path / "a.npy", channels)
    assert np.array_equal(read_image(tmp_path / "a.npy", channels=13), channels)
    with pytest.raises(
        UnreadableImage, match=r"takes 13 channels, this has 30 \(channels must come"
    ):
        read_image(channels.transpose(2, 0, 1), channels=13)
    with pytest.raises(UnreadableImage, match="takes 3 channels, this has 13"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_of_many_channels(tmp_path: Path, planar: str) -> None:
    channels = np.random.default_rng(0).integers(-500, 9000, (20, 30, 13), dtype=np.int16)
    stored = channels if planar == "contig" else np.moveaxis(channels, -1, 0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, planarconfig=planar, photometric="minisblack")
    assert np.array_equal(read_image(path, channels=13), channels)
    with pytest.raises(UnreadableImage, match="takes 3 channels, this has 13"):
        read_image(path)


def test_real_satellite_chip(shared_data: Path) -> None:
    chip = shared_data / "multispectral" / "Spain_7370579_S2Hand.tif"
    assert read_image(chip, channels=13).shape == (512, 512, 13)
    mask = read_mask(chip.with_name("Spain_7370579_LabelHand.tif"))
    assert set(np.unique(mask)) <= {-1, 0, 1}


def test_floats_from_0_to_1(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    path = saved(Image.fromarray(ramp), tmp_path / "a.tif")
    assert np.array_equal(read_image(path)[:, :, 0].ravel(), np.arange(256))
    ramp[0, :4] = (np.nan, -0.001, 0, 1.001)  # no data, and what a filter leaves
    path = saved(Image.fromarray(ramp), tmp_path / "a.tif")
    assert read_image(path)[0, :4, 0].tolist() == [0, 0, 0, 255]
    assert np.array_equal(read_image(path)[1:, :, 0].ravel(), np.arange(16, 256))


class TestBrokenFiles:
    def test_missing(self) -> None:
        with pytest.raises(UnreadableImage, match="gone.jpg: no such file"):
            read_image("gone.jpg")

    def test_truncated(self, tmp_path: Path, rgb: np.ndarray) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
        for suffix in (".jpg", ".png", ".tif", ".webp", ".gif"):
            path = saved(Image.fromarray(noise), tmp_path / f"a{suffix}")
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            with pytest.raises(UnreadableImage, match=f"a{suffix}: "):
                read_image(path)

    def test_not_a_image(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("hello")
        with pytest.raises(UnreadableImage, match="not an image in a known format"):
            read_image(tmp_path / "a.png")
        with pytest.raises(UnreadableImage, match="image in memory: not an image"):
            read_image(b"")
        (tmp_path / "a.npy").write_text("hello")
        with pytest.raises(UnreadableImage, match="cannot be read as an array"):
            read_image(tmp_path / "a.npy")

    def test_decompression_bomb(self) -> None:
        def chunk(kind: bytes, data: bytes) -> bytes:
            body = kind + data
            return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

        header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        bomb = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", b"")
            + chunk(b"IEND", b"")
        )
        with pytest.raises(UnreadableImage, match="raise PIL.Image.MAX_IMAGE_PIXELS"):
            read_image(bomb)


class TestMasks:
    def test_palette_gives_indices(self, tmp_path: Path) -> None:
        ids = np.arange(1200).reshape(30, 40) % 7
        image = Image.fromarray(ids.astype(np.uint8), mode=None).convert("P")
        image = Image.frombytes("P", (40, 30), ids.astype(np.uint8).tobytes())
        image.putpalette([255, 0, 0] * 256)  # one color: only indices tell classes apart
        assert np.array_equal(read_mask(saved(image, tmp_path / "a.png")), ids)

    def test_sixteen_bits(self, tmp_path: Path) -> None:
        ids = (np.arange(1200).reshape(30, 40)).astype(np.uint16)
        assert np.array_equal(read_mask(saved(Image.fromarray(ids), tmp_path / "a.png")), ids)

    def test_grey_stored_as_rgb(self, tmp_path: Path) -> None:
        ids = (np.arange(1200).reshape(30, 40) % 5).astype(np.uint8)
        path = saved(Image.fromarray(np.repeat(ids[:, :, None], 3, 2)), tmp_path / "a.png")
        assert np.array_equal(read_mask(path), ids)

    def test_one_bit(self, tmp_path: Path) -> None:
        ids = np.arange(1200).reshape(30, 40) % 2
        path = saved(Image.fromarray(ids.astype(bool)), tmp_path / "a.png")
        assert np.array_equal(read_mask(path), ids)

    @pytest.mark.parametrize("shape", [(5,), (4, 4, 0), (2, 3, 4, 1)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(UnreadableImage, match="a mask must be"):
            read_mask(np.zeros(shape, np.uint8))

    def test_colors_are_refused(self, tmp_path: Path, rgb: np.ndarray) -> None:
        with pytest.raises(UnreadableImage, match="this one holds colors"):
            read_mask(saved(Image.fromarray(rgb), tmp_path / "a.png"))
        with pytest.raises(UnreadableImage, match="must hold integers, this one holds float32"):
            read_mask(np.zeros((3, 4), np.float32))


def test_resize_is_pillow_s_antialiased_bilinear(rgb: np.ndarray) -> None:
    expected = np.asarray(Image.fromarray(rgb).resize((17, 11), Image.Resampling.BILINEAR))
    assert np.array_equal(resize(rgb, (11, 17)), expected)
    by_channel = resize(np.dstack([rgb, rgb]), (11, 17))
    assert np.abs(by_channel[:, :, 3:].astype(int) - expected).max() <= 1
    as_float = resize(rgb.astype(np.float64), (11, 17))
    assert as_float.dtype == np.float32
    assert np.abs(as_float - expected).max() <= 1


@settings(deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    short=st.integers(32, 2048),
    multiple=st.sampled_from([1, 32]),
)
def test_ratio_is_kept(height: int, width: int, short: int, multiple: int) -> None:
    out = Preprocessing(size=short, multiple=multiple).target_size(height, width)
    assert (out[0] <= out[1]) == (height <= width) or abs(out[0] - out[1]) < multiple
    assert min(out) == -(-short // multiple) * multiple
    exact = short * min(max(height, width) / min(height, width), 16)
    assert exact - 1 <= max(out) < exact + multiple


def test_a_strip_does_not_become_a_wall() -> None:
    assert Preprocessing(size=512).target_size(10, 3000) == (512, 16 * 512)


def test_no_data_becomes_the_mean() -> None:
    image = np.full((4, 4, 2), 3.0)
    image[0, 0], image[1, 1] = np.nan, np.inf
    normalized = Preprocessing(mean=(1, 1), std=(1, 2), rescale=1.0).normalize(image)
    assert normalized[0, 0].tolist() == normalized[1, 1].tolist() == [0, 0]
    assert normalized[2, 2].tolist() == [2, 1]


def test_floats_of_0_to_1_for_a_model_of_0_to_255_are_refused() -> None:
    with pytest.raises(ValueError, match="values end at 1, the model expects 0..255"):
        Preprocessing().normalize(np.random.default_rng(0).random((4, 4, 3)))


def test_normalise_is_the_field_s(rgb: np.ndarray) -> None:
    preprocessing = Preprocessing()
    expected = (rgb / 255 - preprocessing.mean) / preprocessing.std
    np.testing.assert_allclose(preprocessing.normalize(rgb), expected, atol=1e-5)
    with pytest.raises(ValueError, match="4 channels, the preprocessing's mean has 3"):
        preprocessing.normalize(np.zeros((2, 2, 4), np.uint8))


def test_impossible_preprocessing() -> None:
    with pytest.raises(ValueError, match="must match"):
        Preprocessing(mean=(0.5,), std=(0.5, 0.5))
    with pytest.raises(ValueError, match="resample 'magic' is none of"):
        Preprocessing(resample="magic")


def test_a_file_like_jpeg_in_memory(rgb: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG")
    assert read_image(buffer.getvalue()).shape == (30, 40, 3)


class TestStoredValues:
    """Files of more than 8 bits and their own values."""

    @pytest.mark.parametrize("compression", [None, "zlib"])
    @pytest.mark.parametrize("channels", [1, 2, 3, 5])
    @pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "float32", "float64"])
    def test_tiff(self, tmp_path: Path, dtype: str, channels: int, compression: str | None) -> None:
        values = np.random.default_rng(0).integers(0, 9999, (20, 30, channels)).astype(dtype)
        path = tmp_path / "a.tif"
        tifffile.imwrite(
            path,
            values if channels > 1 else values[:, :, 0],
            compression=compression,
            photometric="rgb" if channels == 3 else "minisblack",
            planarconfig="contig" if channels > 1 else None,
        )
        for source in (path, path.read_bytes()):
            image = read_image(source, channels, as_8_bit=False)
            assert image.dtype == dtype
            assert np.array_equal(image, values)

    @pytest.mark.parametrize("dtype", ["uint8", "int16"])
    def test_a_page_for_each_row_or_channel(self, tmp_path: Path, dtype: str) -> None:
        values = np.random.default_rng(0).integers(0, 99, (20, 30, 13)).astype(dtype)
        for stored in (values, np.moveaxis(values, -1, 0)):
            tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack")
            assert np.array_equal(read_image(tmp_path / "a.tif", 13), values)
            with pytest.raises(UnreadableImage, match="takes 3 channels, this has 13"):
                read_image(tmp_path / "a.tif")

    def test_two_bands_are_not_gray(self, tmp_path: Path) -> None:
        for dtype in (np.uint8, np.uint16):
            two = np.zeros((20, 30, 2), dtype)
            path = tmp_path / "a.tif"
            tifffile.imwrite(path, two, photometric="minisblack", planarconfig="contig")
            for channels in (1, 3):
                with pytest.raises(UnreadableImage, match="this has 2"):
                    read_image(path, channels)
            assert read_image(path, 2).shape == (20, 30, 2)

    def test_lzw(self, tmp_path: Path) -> None:
        deep = (np.arange(1200).reshape(30, 40) * 54).astype(np.uint16)
        path = saved(Image.fromarray(deep), tmp_path / "a.tif", compression="tiff_lzw")
        assert np.array_equal(read_image(path, 1, as_8_bit=False)[:, :, 0], deep)
        rgb16 = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
        cv2.imwrite(str(tmp_path / "c.tif"), rgb16[:, :, ::-1])
        with tifffile.TiffFile(tmp_path / "c.tif") as file:
            assert file.pages.first.compression == tifffile.COMPRESSION.LZW
        assert np.array_equal(read_image(tmp_path / "c.tif", as_8_bit=False), rgb16)
        floats = np.linspace(-25, 3, 1200, dtype=np.float32).reshape(30, 40)
        path = saved(Image.fromarray(floats), tmp_path / "b.tif", compression="tiff_lzw")
        assert np.array_equal(read_image(path, 1, as_8_bit=False)[:, :, 0], floats)

    @pytest.mark.parametrize("channels", [3, 4])
    def test_deep_png_is_not_cut_to_its_high_bytes(self, tmp_path: Path, channels: int) -> None:
        deep = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
        order = [2, 1, 0, 3][:channels]
        cv2.imwrite(str(tmp_path / "a.png"), deep[:, :, order])
        image = read_image(tmp_path / "a.png", as_8_bit=False)
        assert np.array_equal(image, deep[:, :, :3])
        assert np.array_equal(read_image(tmp_path / "a.png"), np.rint(deep[:, :, :3] / 257))

    def test_gray_becomes_three_channels_and_color_one(self, tmp_path: Path) -> None:
        deep = np.full((4, 6), 4000, np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", deep)
        image = read_image(tmp_path / "a.tif", as_8_bit=False)
        assert image.shape == (4, 6, 3)
        assert (image == 4000).all()
        color = np.full((4, 6, 3), (1000, 2000, 3000), np.uint16)
        gray = read_image(color, 1, as_8_bit=False)
        assert gray.dtype == np.uint16
        assert (gray == (299 + 1174 + 342)).all()

    def test_a_tiff_turned_by_its_tag(self, tmp_path: Path) -> None:
        values = np.arange(600, dtype=np.float32).reshape(20, 30)
        tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(274, 3, 1, 6, True)])
        assert exif_orientation(tmp_path / "a.tif") == 6
        image = read_image(tmp_path / "a.tif", 1, as_8_bit=False)
        assert np.array_equal(image[:, :, 0], np.rot90(values, -1))


class TestScalingTo8Bits:
    """What a model of 8-bit images gets from deeper ones."""

    def expected(self, values: np.ndarray, low: float, high: float) -> np.ndarray:
        return np.rint((values.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)

    @pytest.mark.parametrize("tag", [281, 341])
    def test_a_tiff_that_declares_12_bits(self, tmp_path: Path, tag: int) -> None:
        values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
        tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(tag, 3, 1, 4095, True)])
        image = read_image(tmp_path / "a.tif", 1)[:, :, 0]
        assert np.array_equal(image, self.expected(values, 0, 4095))
        assert len(np.unique(image)) == 256

    @pytest.mark.parametrize(("unscaled", "highest"), [(True, 4095), (False, 65535)])
    def test_a_png_that_declares_12_bits(
        self, tmp_path: Path, unscaled: bool, highest: int
    ) -> None:
        values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
        if not unscaled:
            values = values << 4 | values >> 8
        data = saved(Image.fromarray(values), tmp_path / "a.png").read_bytes()
        body = b"sBIT" + bytes([12])
        chunk = struct.pack(">I", 1) + body + struct.pack(">I", zlib.crc32(body))
        image = read_image(data[:33] + chunk + data[33:], 1)[:, :, 0]
        assert np.array_equal(image, self.expected(values, 0, highest))

    def test_white_is_zero(self, tmp_path: Path) -> None:
        values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
        assert np.array_equal(
            read_image(tmp_path / "a.tif", 1)[:, :, 0], 255 - self.expected(values, 0, 65535)
        )

    @pytest.mark.parametrize(
        "values",
        [
            np.linspace(-25, 0, 600, dtype=np.float32),
            np.linspace(0, 10_000, 600, dtype=np.float32),
            np.linspace(-1000, 3000, 600).astype(np.int16),
        ],
        ids=["decibels", "reflectance", "CT"],
    )
    def test_an_unknown_range_is_asked_for(self, tmp_path: Path, values: np.ndarray) -> None:
        values = values.reshape(20, 30)
        low, high = float(values.min()), float(values.max())
        tifffile.imwrite(tmp_path / "a.tif", values)
        np.save(tmp_path / "a.npy", values)
        for file in ("a.tif", "a.npy"):
            with pytest.raises(UnreadableImage, match="expects 8 bits .* set value_range"):
                read_image(tmp_path / file)
            image = read_image(tmp_path / file, value_range=(low, high))
            assert image.dtype == np.uint8
            assert np.array_equal(image[:, :, 0], self.expected(values, low, high))
            assert np.array_equal(read_image(tmp_path / file, 1, as_8_bit=False)[:, :, 0], values)
        with pytest.raises(UnreadableImage, match=r"must be \(low, high\)"):
            read_image(tmp_path / "a.tif", value_range=(5, 5))

    def test_8_bits_are_left_alone(self, rgb: np.ndarray) -> None:
        assert np.array_equal(read_image(rgb, value_range=(0, 100)), rgb)
        assert np.array_equal(read_image(rgb.astype(np.int64)), rgb)


class TestAnyBytes:
    def test_mangled_files(self, tmp_path: Path) -> None:
        outcomes = {"read": 0, "refused": 0}
        for name, data in mangled_files(600, seed=1):
            path = tmp_path / name
            path.write_bytes(data)
            for read in (read_image, read_mask_or_colors):
                try:
                    read(path)
                    outcomes["read"] += 1
                except (UnreadableImage, MemoryError, OSError):
                    outcomes["refused"] += 1
        assert min(outcomes.values()) > 100

    def test_small_files_that_announce_huge_images(self, tmp_path: Path) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (100_000, 100_000, 3)}
        with (tmp_path / "a.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(100))
        with pytest.raises(UnreadableImage, match="the file is shorter"):
            read_image(tmp_path / "a.npy")
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.zeros((8, 8), np.float32))
        data = buffer.getvalue()
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            offsets = [file.pages.first.tags[tag].valueoffset for tag in (256, 257, 278)]
        for side in (12_000, 100_000):
            huge = bytearray(data)
            for offset in offsets:
                huge[offset : offset + 4] = struct.pack("<I", side)
            for read in (read_image, read_mask):
                with pytest.raises(UnreadableImage):
                    read(bytes(huge))

    @pytest.mark.parametrize("source", [None, [[1, 2]], 7, {"a": 1}])
    def test_other_types(self, source: object) -> None:
        with pytest.raises(TypeError, match="an image must be a path, encoded bytes, a PIL image"):
            read_image(source)

    def test_a_tensor_comes_with_advice(self) -> None:
        with pytest.raises(TypeError, match=r"not Tensor; convert a tensor .*permute\(1, 2, 0\)"):
            read_image(torch.zeros(3, 4, 4))

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UnreadableImage, match="a folder, not an image"):
            read_image(tmp_path)


def test_tifffile_is_quiet_only_while_this_package_reads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(40))
    with caplog.at_level(logging.DEBUG, logger="tifffile"):
        with pytest.raises(UnreadableImage):
            read_image(tmp_path / "a.tif")
        assert not caplog.records
        logging.getLogger("tifffile").warning("of another program's making")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_pillow_s(rgb: np.ndarray, orientation: int) -> None:
    image = Image.fromarray(rgb)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(turn_upright(rgb, orientation), expected)


def test_warnings_are_ignored_by_several_threads_at_once() -> None:
    """Neither does a warning get through, nor does a filter stay."""
    before = list(warnings.filters)

    def warn(_: int) -> None:
        for _ in range(500):
            with ignoring(ResourceWarning):
                warnings.warn("not shown", ResourceWarning, stacklevel=1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(warn, range(8)))
    assert list(warnings.filters) == before
