"""Quantised weights in Hugging Face's directories: compressed-tensors' `quantization_config`, and a source that packs.

Only its "pack-quantized" format is read and written: symmetric integers of 4 or 8 bits in groups or whole rows, which
`transformers` (with compressed-tensors) and vLLM run.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from herd.base.errors import ConfigError, DataError
from herd.model.packing import Packing, Shape, quantised
from herd.model.source import Source

Scheme = tuple[int, int | None]  # bits, and the weights that share a scale (None: a whole row)

_SUPPORTED = "herd reads compressed-tensors' pack-quantized: symmetric int4 or int8 weights in groups or rows"
_METHOD, _FORMAT = "compressed-tensors", "pack-quantized"
_DESCRIBING = ("version", "global_compression_ratio", "ignore", "run_compressed")
# what a weight's entry may say; the others have no say once the weights are written
_WEIGHTS = {"type": "int", "symmetric": True, "dynamic": False}
_WEIGHTS_DESCRIBING = ("observer", "observer_kwargs", "zp_dtype", "scale_dtype", "num_bits", "group_size", "strategy")


class QuantisedSource:
    """The float weights of another source, with those of a plan quantised as they are read."""

    def __init__(self, source: Source, plan: Mapping[str, Packing]) -> None:
        self.config = source.config
        self._source, self._plan = source, plan
        self._last: tuple[str, dict[str, Tensor]] = ("", {})

    def names(self) -> list[str]:
        names = []
        for name in self._source.names():
            owner = name.removesuffix(".weight")
            if owner in self._plan:
                names += [f"{owner}.{part}" for part in self._plan[owner].tensors(self._source.shape(name))]
            else:
                names.append(name)
        return names

    def shape(self, name: str) -> Shape:
        owner, part = name.rsplit(".", 1)
        if owner not in self._plan:
            return self._source.shape(name)
        return self._plan[owner].tensors(self._source.shape(f"{owner}.weight"))[part][0]

    def dtype(self, name: str) -> torch.dtype:
        owner, part = name.rsplit(".", 1)
        if owner not in self._plan:
            return self._source.dtype(name)
        return self._plan[owner].tensors((1, 1))[part][1]

    def read(self, name: str) -> Tensor:
        owner, part = name.rsplit(".", 1)
        if owner not in self._plan:
            return self._source.read(name)
        if self._last[0] != owner:  # its tensors are asked for one after the other
            weight = self._source.read(f"{owner}.weight")
            try:
                words, scale = quantised(weight, self._plan[owner])
            except DataError as error:
                raise DataError(f"{owner}.weight {error}") from None
            self._last = (
                owner,
                {
                    "weight_packed": words,
                    "weight_scale": scale,
                    "weight_shape": torch.tensor(weight.shape),
                },
            )
        return self._last[1][part]


def quantization_config(packings: Mapping[str, Packing], unpacked: list[str]) -> dict[str, Any]:
    """Return the `quantization_config` of a directory: how each kind of matrix (`q_proj`, ...) is packed or isn't."""
    groups: dict[Packing, list[str]] = {}
    for kind, packing in packings.items():
        groups.setdefault(packing, []).append(kind)
    entries = {}
    for number, (packing, kinds) in enumerate(groups.items()):
        weights = {"num_bits": packing.bits, "group_size": packing.group, "strategy": "group", "actorder": None}
        entries[f"group_{number}"] = {
            # the class is what most readers were tried with; names where one scheme isn't that of all
            "targets": ["Linear"] if len(groups) == 1 else [rf"re:.*\.({'|'.join(kinds)})$"],
            "weights": _WEIGHTS | weights,
            "input_activations": None,
            "output_activations": None,
        }
    return {
        "quant_method": _METHOD,
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": entries,
        "ignore": ["lm_head", *(rf"re:.*\.{kind}$" for kind in unpacked)],
        "kv_cache_scheme": None,
    }


def read_schemes(values: Any, *, where: str) -> tuple[Scheme, ...]:
    """Return the schemes that a `quantization_config` names; which matrix has which, its tensors say.

    Raises ConfigError on any other method, and on settings that would change what is computed.
    """
    if not values:
        return ()
    if not isinstance(values, dict) or (values.get("quant_method"), values.get("format")) != (_METHOD, _FORMAT):
        found = values if not isinstance(values, dict) else (values.get("quant_method"), values.get("format"))
        raise ConfigError(f"{where}: quantization_config {found!r:.80} is not supported; {_SUPPORTED}")
    groups = values.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ConfigError(f"{where}: quantization_config has no config_groups")
    known = {"quant_method": _METHOD, "format": _FORMAT, "quantization_status": "compressed", "config_groups": groups}
    _refuse_others(values, known, _DESCRIBING, where=f"{where}: quantization_config")
    return tuple(_scheme(group, where=f"{where}: quantization_config {name!r:.40}") for name, group in groups.items())


def _scheme(group: Any, *, where: str) -> Scheme:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise ConfigError(f"{where} has no weights; {_SUPPORTED}")
    _refuse_others(group, {"format": _FORMAT, "weights": weights}, ("targets",), where=where)
    # "weight" and "static" are orders in which the scales were searched, undone before the weights were stored
    allowed = _WEIGHTS | {
        "actorder": weights.get("actorder") if weights.get("actorder") in ("weight", "static") else None
    }
    _refuse_others(weights, allowed, _WEIGHTS_DESCRIBING, where=where)
    bits, strategy, size = weights.get("num_bits"), weights.get("strategy"), weights.get("group_size")
    if any(weights.get(key, value) != value for key, value in _WEIGHTS.items()) or bits not in (4, 8):
        raise ConfigError(f"{where}: {bits!r:.20} bits, {weights!r:.160}: not supported; {_SUPPORTED}")
    if strategy == "channel" and size in (None, -1):
        return bits, None
    if strategy != "group" or not isinstance(size, int) or size < 1:
        raise ConfigError(
            f"{where}: strategy {strategy!r:.40} with group_size {size!r:.20}: not supported; {_SUPPORTED}"
        )
    return bits, size


def _refuse_others(
    values: dict[str, Any], known: Mapping[str, Any], describing: tuple[str, ...], *, where: str
) -> None:
    """Refuse a key that is set and that herd doesn't know, or knows with another value: it may change the numbers."""
    for key, value in values.items():
        if key not in describing and value and value != known.get(key):
            raise ConfigError(f"{where}: {key} {value!r:.60} is not supported; {_SUPPORTED}")
