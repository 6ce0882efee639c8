"""Which siblings can be cut from which flagship. No torch: a recipe says so before anything is trained."""

from herd.base.errors import ConfigError
from herd.model.config import Shape


def check_cut(flagship: Shape, sibling: Shape, *, where: str = "the sibling") -> None:
    """Raise ConfigError, with the remedy, unless pruning can make `sibling` out of `flagship`.

    RoPE's pairs of dimensions stay as they are (`head_size`, `rope_theta`); widths and depths only shrink.
    """
    group, most = (shape.n_heads // shape.n_kv_heads for shape in (sibling, flagship))
    size = flagship.head_size
    if sibling.head_size != size:
        reason = f"its heads have size {sibling.head_size} and the flagship's {size}; give it `head_dim: {size}`"
    elif sibling.rope_theta != flagship.rope_theta:
        reason = f"rope_theta {sibling.rope_theta} isn't the flagship's; give it `rope_theta: {flagship.rope_theta}`"
    elif wider := [n for n in _WIDTHS if getattr(sibling, n) > getattr(flagship, n)]:
        name = wider[0]
        reason = f"{name} {getattr(sibling, name)} is above the flagship's; give at most {getattr(flagship, name)}"
    elif group > most:
        reason = (
            f"{group} query heads share a key/value head, {most} in the flagship; "
            f"give at most `n_heads: {most * sibling.n_kv_heads}`"
        )
    elif sibling.tie_embeddings and not flagship.tie_embeddings:
        reason = "the flagship's embedding and output are two matrices; give it `tie_embeddings: false`"
    else:
        return
    raise ConfigError(f"{where} can't be cut from the flagship (init: pruned): {reason}")


_WIDTHS = ("dim", "n_layers", "n_kv_heads", "ffn_hidden")
