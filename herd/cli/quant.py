"""The option `--quant` of every verb that opens a model."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from herd.model.quant import NumberFormat

QuantOption = Annotated[
    str | None,
    typer.Option("--quant", help="Weights as int8, int4, bf16 or fp32; as the machine likes it unless given."),
]


def chosen(quant: str | None) -> "NumberFormat | None":
    """Return the number format of an option. Raises ConfigError."""
    if quant is None:
        return None
    from herd.model.quant import number_format

    return number_format(quant)
