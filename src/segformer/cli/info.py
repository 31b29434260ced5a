"""`segformer info`.

tyro reads the options from a dataclass inside the function, so annotations must be real types here,
not the strings of PEP 563.
"""

from dataclasses import dataclass

from segformer.cli.terminal import parse, show


def run(words: list[str]) -> int:
    """Run the command; returns the exit code."""
    import tyro

    @dataclass
    class Info:
        """Show what a model is: parameters, MACs, classes, expected input, format, license.

        The weights are not read.

        Example: segformer info nvidia/segformer-b0-finetuned-ade-512-512 --size 1024 2048

        Attributes:
            model: Folder, file or Hub id of a model. Default: the one that ships inside.
            size: Height and width in pixels to count MACs for. Default: the model's own.
            json: Print JSON.
        """

        model: tyro.conf.Positional[str | None] = None
        size: tuple[int, int] | None = None
        json: bool = False

    options = parse(Info, "info", words)

    from segformer.checkpoints.info import describe, tables
    from segformer.checkpoints.opening import SHIPPED, open_checkpoint

    description = describe(open_checkpoint(options.model or SHIPPED), options.size)
    if options.json:
        import json

        print(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        for table in tables(description):
            show(table)
    return 0
