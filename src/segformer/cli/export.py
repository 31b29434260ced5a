"""`segformer export`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from segformer.cli.terminal import parse


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    from segformer.export.config import ExportConfig
    from segformer.export.int8_config import Int8Config
    from segformer.options import depends

    @dataclass
    class Export:
        """Write a model for other programs: ONNX Runtime, transformers.js, OpenVINO, QGIS.

        The folder holds the graph, config.json, preprocessor_config.json and export.json. The graph
        is compared with the model on images before the folder appears; what was found is in
        export.json.

        Example: segformer export runs/mine/best --format onnx --out mine-onnx

        With --int8, layers are quantized as long as the mIoU on a data set stays within --max-drop.

        Attributes:
            model: Folder, file or Hub id of a segmentation model, a classifier or an encoder.
            out: Folder to write.
            images: Images to compare the graph and the model on.
            overwrite: Replace the folder if it exists.
        """

        model: tyro.conf.Positional[str]
        config: Annotated[ExportConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="graph")]
        out: Path
        images: Annotated[
            tuple[Path, ...], depends("IMAGE ...", "a photograph that ships with the package")
        ] = ()
        overwrite: bool = False
        int8: Annotated[
            Int8Config, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="8-bit integers")
        ] = field(default_factory=Int8Config)

    options = parse(Export, "export", words)

    from segformer.export.export import export_model

    found = export_model(
        options.model,
        options.out,
        options.config,
        int8=options.int8,
        images=options.images,
        overwrite=options.overwrite,
    )
    for one in found.checks:
        parts = [f"{one.image}, {' x '.join(map(str, one.shape))}"]
        if one.largest_difference is not None:
            parts.append(f"largest difference {one.largest_difference:.1e}")
        if one.same_class is not None:
            parts.append(f"same class {one.same_class:.4%}")
        print("checked: " + ", ".join(parts))
    for line in found.int8.lines() if found.int8 is not None else ():
        print(line)
    print(f"written: {options.out}")
    return 0
