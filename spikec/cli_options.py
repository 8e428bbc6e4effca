"""Arguments and options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

ModelArgument = Annotated[
    str, typer.Argument(help="zoo:NAME, zoo:NAME@DATA, FILE.spk, FILE.onnx, FILE.nir or module:function")
]
DATA_HELP = "digits, mnist5k, mnist, fashion, FILE.npz, synthetic:SHAPE, or events such as nmnist:FOLDER"
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object")]
SeedOption = Annotated[int, typer.Option(help="seed of initial weights, training and encodings")]
ConfigOption = Annotated[str, typer.Option(help="preset name or FILE.toml")]


class LossOption(StrEnum):
    """What training minimises."""

    CROSS_ENTROPY = "cross_entropy"
    MSE = "mse"
