"""What a recipe says of the machine. No torch."""

from typing import Literal

from herd.base.config import Section


class RuntimeConfig(Section):
    """`device` auto takes a GPU when there is one; `dtype` is the format of the forward pass, masters are float32."""

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = None
