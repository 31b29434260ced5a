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
        """Write a model for other programs (ONNX Runtime, OpenVINO, QGIS) or as a web page.

        The folder holds the graph, config.json, preprocessor_config.json and export.json. The graph
        is compared with the model on images before the folder appears; what was found is in
        export.json.

        Example: segformer export runs/mine/best --format onnx --out mine-onnx

        With --int8, layers are quantized as long as the mIoU on a data set stays within --max-drop.

        Attributes:
            model: Folder, file or Hub id of a segmentation model, a classifier or an encoder.
            out: Folder to write.
            images: Images to compare the graph and the model on.
            title: Heading of the web page.
            runtime_files: Folder with the files of ONNX Runtime Web (package/dist of the npm
                package) for a web page.
            overwrite: Replace a folder that segformer export wrote.
        """

        model: tyro.conf.Positional[str]
        config: Annotated[ExportConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="graph")]
        out: Path
        images: Annotated[
            tuple[Path, ...], depends("IMAGE ...", "a photograph that ships with the package")
        ] = ()
        title: Annotated[str | None, depends("TEXT", "the model's name")] = None
        runtime_files: Annotated[
            Path | None, depends("DIR", "downloaded at the first export, then kept")
        ] = None
        overwrite: bool = False
        int8: Annotated[
            Int8Config, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="8-bit integers")
        ] = field(default_factory=Int8Config)

    options = parse(Export, "export", words)

    if options.config.format == "web":
        from segformer.export.web import export_web

        if options.int8.int8:
            raise ValueError("--int8 is for --format onnx and openvino")
        checks = export_web(
            options.model,
            options.out,
            options.config,
            title=options.title,
            runtime_files=options.runtime_files,
            images=options.images,
            overwrite=options.overwrite,
        )
        report = None
    else:
        from segformer.export.export import export_model

        if options.title is not None or options.runtime_files is not None:
            raise ValueError("--title and --runtime-files are for --format web")
        exported = export_model(
            options.model,
            options.out,
            options.config,
            int8=options.int8,
            images=options.images,
            overwrite=options.overwrite,
        )
        checks, report = exported.checks, exported.int8
    for check in checks:
        print(f"checked: {check}")
    for line in report.lines() if report is not None else ():
        print(line)
    print(f"written: {options.out}")
    return 0
