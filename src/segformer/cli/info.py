"""`segformer info`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from segformer.cli.terminal import parse, show
from segformer.options import depends


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    @dataclass
    class Info:
        """Show what a model is: parameters, MACs, classes, expected input, format, license.

        The weights are not read.

        Example: segformer info nvidia/segformer-b0-finetuned-ade-512-512 --size 1024 2048

        Attributes:
            model: Folder, file or Hub id of a model; also a folder that segformer export wrote.
            size: Height and width in pixels to count MACs for.
            json: Print JSON.
        """

        model: Annotated[
            tyro.conf.Positional[str | None], depends("MODEL", "the human parsing model inside")
        ] = None
        size: Annotated[tuple[int, int] | None, depends("H W", "that of the model")] = None
        json: bool = False

    options = parse(Info, "info", words)

    from segformer.prediction.runtimes.exported import is_exported

    if is_exported(options.model):
        from segformer.prediction.runtimes.exported_info import describe_exported, exported_tables

        if options.size is not None:
            raise ValueError("--size counts MACs of models with weights; this model is exported")
        description = describe_exported(str(options.model))
        shown = exported_tables(description)
    else:
        description, shown = _describe_checkpoint(options.model, options.size)
    if options.json:
        import json

        print(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        for table in shown:
            show(table)
    return 0


def _describe_checkpoint(
    model: str | None, size: tuple[int, int] | None
) -> tuple[dict[str, Any], list[Any]]:
    """Facts about a model with weights, and their tables."""
    from segformer.checkpoints.info import describe, tables
    from segformer.checkpoints.opening import SHIPPED, open_checkpoint
    from segformer.prediction.runtimes.choice import describe_auto

    checkpoint = open_checkpoint(model or SHIPPED)
    description = describe(checkpoint, size)
    if checkpoint.kind != "encoder":
        description["auto_runtime"] = {
            precision: describe_auto(checkpoint.config, precision)
            for precision in ("float32", "bfloat16")
        }
    return description, tables(description)
