"""The style with which QGIS shows a label map and its polygons."""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

from segformer.classes import ClassSet


def hex_colors(classes: ClassSet) -> list[str]:
    """The color of each class as #rrggbb."""
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in classes.palette[: len(classes)]]


def qgis_style(classes: ClassSet) -> str:
    """The content of ``NAME.qml``, which QGIS loads with ``NAME.tif`` and with ``NAME.gpkg``.

    A raster layer reads the palette. Without it, its legend has a row for each of 256 values. A
    layer of polygons reads the categories; without them, all polygons have one color.
    """
    names = [quoteattr(name) for name in classes.names]
    colors = hex_colors(classes)
    palette = "".join(
        f'<paletteEntry value="{value}" color="{color}" label={name} alpha="255"/>\n'
        for value, (name, color) in enumerate(zip(names, colors, strict=True))
    )
    categories = "".join(
        f'<category value="{value}" symbol="{value}" label={name} render="true"/>\n'
        for value, name in enumerate(names)
    )
    symbols = "".join(
        f'<symbol type="fill" name="{value}" alpha="1"><layer class="SimpleFill" enabled="1">'
        f'<prop k="color" v="{red},{green},{blue},255"/><prop k="style" v="solid"/>'
        '<prop k="outline_style" v="no"/></layer></symbol>\n'
        for value, (red, green, blue) in enumerate(classes.palette[: len(classes)])
    )
    return (
        '<qgis version="3.22">\n<pipe>\n<rasterrenderer type="paletted" band="1" opacity="1" '
        f'alphaBand="-1">\n<colorPalette>\n{palette}</colorPalette>\n</rasterrenderer>\n</pipe>\n'
        '<renderer-v2 type="categorizedSymbol" attr="class_id">\n'
        f"<categories>\n{categories}</categories>\n<symbols>\n{symbols}</symbols>\n"
        "</renderer-v2>\n</qgis>\n"
    )
