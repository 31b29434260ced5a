"""The style for QGIS, read back; what QGIS itself shows is in ``docs/scenes.md``."""

from xml.etree import ElementTree

from segformer import ClassSet
from segformer.raster.qgis import qgis_style


def test_the_style_of_label_maps_and_polygons() -> None:
    names = ("water", 'roads & "paths"', "été <b>")
    classes = ClassSet(names, palette=((0, 0, 255), (1, 2, 3), (250, 128, 7)))
    style = ElementTree.fromstring(qgis_style(classes))
    entries = style.findall("pipe/rasterrenderer/colorPalette/paletteEntry")
    assert [(entry.get("value"), entry.get("label")) for entry in entries] == [
        (str(value), name) for value, name in enumerate(names)
    ]
    assert [entry.get("color") for entry in entries] == ["#0000ff", "#010203", "#fa8007"]
    polygons = style.find("renderer-v2")
    assert polygons is not None and polygons.get("attr") == "class_id"
    categories = polygons.findall("categories/category")
    assert [category.get("label") for category in categories] == list(names)
    symbols = {symbol.get("name"): symbol for symbol in polygons.findall("symbols/symbol")}
    colors = []
    for category in categories:
        color = symbols[category.get("symbol")].find("layer/prop[@k='color']")
        assert color is not None
        colors.append(color.get("v"))
    assert colors == ["0,0,255,255", "1,2,3,255", "250,128,7,255"]
