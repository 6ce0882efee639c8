"""`herd import` and `herd export`: models from elsewhere in, models for elsewhere out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from herd.stages.export import Plan

FormatOption = Annotated[str, typer.Option("--format", help="hf (transformers, vLLM), meta, or gguf (llama.cpp).")]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="bf16, fp16 or fp32; as stored unless given.", show_default=False)
]
VerifyOption = Annotated[bool, typer.Option("--no-verify", help="Don't read it back and compare; the folder says so.")]


def import_command(
    path: Annotated[Path, typer.Argument(help="A folder of Meta's or Hugging Face's, or one of herd's.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="Write it here as a Hugging Face directory.", show_default=False)
    ] = None,
    dtype: DtypeOption = None,
    no_verify: VerifyOption = False,
) -> None:
    """Recognise a Llama 3 model: say what it is and whether its parts fit; with --to, convert it.

    Every other verb takes such a folder as it is: herd chat PATH, herd export PATH, herd raise meadow flagship=PATH.
    """
    from herd.stages.importing import report

    for name, text in report(path):
        print(f"{name:<12} {text}")
    if to is not None:
        _export(path, to, _plan("hf", 1, dtype, no_verify))


def export_command(
    model: Annotated[Path, typer.Argument(help="A run's model, such as runs/meadow/flagship, or any model folder.")],
    to: Annotated[Path | None, typer.Option("--to", help="The folder to write.", show_default=False)] = None,
    form: FormatOption = "hf",
    mp: Annotated[int, typer.Option("--mp", help="Model-parallel ranks of Meta's format: 1, 2, 4, 8 or 16.")] = 1,
    dtype: DtypeOption = None,
    quant: Annotated[
        str | None, typer.Option("--quant", help="int8 or int4: quantise the layers (hf only).", show_default=False)
    ] = None,
    no_verify: VerifyOption = False,
) -> None:
    """Write a model for others to run; it gets its name only when it was reloaded and matched its source."""
    plan = _plan(form, mp, dtype, no_verify, quant)
    _export(model, to, plan)


def _plan(form: str, mp: int, dtype: str | None, no_verify: bool, quant: str | None = None) -> "Plan":
    from herd.base.errors import ConfigError
    from herd.model.quant import quant_format
    from herd.stages.export import DTYPES, FORMATS, Plan

    if form not in FORMATS:
        raise ConfigError(f"--format {form!r} is not one of {', '.join(FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if mp not in (1, 2, 4, 8, 16) or (mp > 1 and form != "meta"):
        raise ConfigError(f"--mp {mp}: 1, 2, 4, 8 or 16, and only with --format meta")
    chosen = quant_format(quant) if quant else None
    return Plan(FORMATS[form], mp, DTYPES[dtype] if dtype else None, not no_verify, chosen)


def _export(path: Path, to: Path | None, plan: "Plan") -> None:
    from herd.cli.display import display
    from herd.stages.export import export
    from herd.stages.models import open_folder

    model = open_folder(path)
    target = to or Path(f"{model.slug}-{plan.quant or plan.format}")
    with display(["write", *(["verify"] if plan.verified else [])]) as progress:
        report = export(model, target, plan, progress)
    if isinstance(report["verified"], bool):
        print("not verified, as asked for")
    else:
        for name, text in report["verified"].items():
            print(f"{name:<12} {text}")
    if "note" in report:
        print(f"note         {report['note']}")
    print(f"written      {target}")
