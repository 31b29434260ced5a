"""Results that do not fit: a limit on the size of files stands for a full disk."""

import subprocess
import sys
from pathlib import Path

import pytest

from raster.label_maps import blobs, write_raster
from segformer.classes import ClassSet
from segformer.image.scene import open_scene
from segformer.raster.geotiff import RasterLayer, write_cog

rasterio = pytest.importorskip("rasterio", reason='needs the extra "geo"')
resource = pytest.importorskip("resource", reason="limits the size of files")

_LIMITED = """
import resource, sys
from pathlib import Path
from segformer.classes import ClassSet
source, result, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
classes = ClassSet(("a", "b", "c", "d"))
import pyogrio, shapely, rasterio
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if result.suffix == ".tif":
    from segformer.image.scene import open_scene
    from segformer.raster.geotiff import RasterLayer, write_cog
    scene = open_scene(source)
    layer = RasterLayer("class", "uint8", 255, "MODE", classes)
    blocks = {scene.window: Path(source)}
    write_cog(result, blocks, scene.full_grid, scene.window, layer, cache=1 << 24)
else:
    from segformer.raster.polygons import write_polygons
    write_polygons(source, result, classes=classes)
"""


def limited(source, result, limit):
    """The last line of the errors of a process whose files may have so many bytes."""
    words = [sys.executable, "-c", _LIMITED, str(source), str(result), str(limit)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr  # an exception, not a signal
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("limit", [4_000, 20_000, 80_000])
def test_a_label_map_that_does_not_fit(tmp_path, limit):
    labels = blobs(700, 700, sigma=1)
    source = write_raster(tmp_path / "a.tif", labels, compress="deflate")
    assert source.stat().st_size > 81_000
    (tmp_path / "out").mkdir()
    error = limited(source, tmp_path / "out" / "r.tif", limit)
    assert "r.tif: cannot be written" in error and "MB of disk space are free" in error
    assert not list((tmp_path / "out").glob("*.tif"))


@pytest.mark.parametrize(
    ("limit", "message"),
    [(10_000, "polygons need 0 MB of disk space"), (60_000, "polygons cannot be written")],
)
def test_polygons_that_do_not_fit(tmp_path, limit, message):
    source = write_raster(tmp_path / "a.tif", blobs(150, 150, sigma=1), compress="deflate")
    (tmp_path / "out").mkdir()
    assert message in limited(source, tmp_path / "out" / "r.gpkg", limit)
    assert not list((tmp_path / "out").iterdir())


def test_a_label_map_that_gdal_leaves_incomplete(tmp_path, monkeypatch):
    # GDAL may end without an error on a full disk
    source = write_raster(tmp_path / "a.tif", blobs(700, 700, sigma=1), compress="deflate")
    import rasterio.shutil

    copy = rasterio.shutil.copy

    def broken_copy(vrt, path, **options):
        copy(vrt, path, **options)
        with Path(path).open("r+b") as file:
            file.truncate(file.seek(0, 2) - 2000)

    monkeypatch.setattr(rasterio.shutil, "copy", broken_copy)
    layer = RasterLayer("class", "uint8", 255, "MODE", ClassSet(("a", "b", "c", "d")))
    with open_scene(source) as scene, pytest.raises(OSError, match="cannot be written"):
        blocks = {scene.window: source}
        path = tmp_path / "r.tif"
        write_cog(path, blocks, scene.full_grid, scene.window, layer, cache=1 << 24)
    assert not path.exists()
