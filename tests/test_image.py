import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segformer import Preprocessing
from segformer.image import UnreadableImage, read_image, read_mask, resize


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
