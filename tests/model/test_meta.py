"""Meta's checkpoints: the same logits as Meta's mathematics, bit equal there and back, the published shapes.

The oracle below is written from the definition and shares no code with herd: RoPE turns neighbouring pairs as complex
numbers, key/value heads are repeated, and it merges the rank files itself. A herd that wrote and read with the same
mistake would pass every round trip, and fail here.
"""

import json
import math
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import TOY, toy_model

from herd.base.errors import ConfigError, DataError
from herd.model import meta
from herd.model.config import ModelConfig, RopeScaling
from herd.model.hf import HFSource, write_hf
from herd.model.meta import MetaSource, meta_config, rank_shapes, to_params, write_meta
from herd.model.published import PUBLISHED, published
from herd.model.source import WeightsSource
from herd.model.weights import load_config, load_model, open_source, write_hf_configs

# 16 heads of 8, which 1, 2, 4, 8 and 16 ranks can share; the published scaling
WIDE = TOY.model_copy(
    update={"dim": 128, "n_heads": 16, "n_kv_heads": 4, "ffn_hidden": 160, "vocab_size": 64}
    | {"rope_scaling": RopeScaling(), "max_positions": 131_072}
)


def write(folder: Path, config: ModelConfig, *, mp: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Write a toy model as Meta would; return its weights by herd's names."""
    weights = dict(toy_model(config, std=config.dim**-0.5).named_parameters())
    folder.mkdir(parents=True, exist_ok=True)
    write_meta(WeightsSource(weights, config), folder, mp=mp, dtype=dtype)
    return weights


def ranks_of(folder: Path) -> list[dict[str, Tensor]]:
    """Read the rank files as anyone else would."""
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("consolidated.*.pth"))]


def metas_logits(folder: Path, tokens: list[int]) -> Tensor:
    """Compute the scores [t, vocab] of a folder in float32 by Meta's definition of the model."""
    params, ranks = json.loads((folder / "params.json").read_text()), ranks_of(folder)
    heads, groups = params["n_heads"], params["n_kv_heads"]
    size, count = params["dim"] // heads, len(tokens)

    def whole(name: str) -> Tensor:
        parts = [rank[f"{name}.weight"].float() for rank in ranks]
        if "norm" in name:
            return parts[0]
        if name.endswith(("wk", "wv")):
            parts = parts[:: max(1, len(parts) // groups)]
        return torch.cat(parts, dim=1 if name.endswith(("wo", "w2")) else 0)

    frequencies = []
    for i in range(0, size, 2):
        frequency = params["rope_theta"] ** (-i / size)
        if params.get("use_scaled_rope"):
            turns = 8192 * frequency / (2 * math.pi)  # in the original context
            kept = 1.0 if turns > 4 else 0.0 if turns < 1 else (turns - 1) / 3
            frequency *= kept + (1 - kept) / 8
        frequencies.append(frequency)
    angles = torch.outer(torch.arange(count), torch.tensor(frequencies))
    turn = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)

    def rotated(x_thd: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x_thd.unflatten(2, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(2)

    def normed(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + params["norm_eps"]).sqrt() * whole(name)

    x = whole("tok_embeddings")[tokens]
    for layer in range(params["n_layers"]):
        at = f"layers.{layer}."
        y = normed(x, at + "attention_norm")
        q = rotated((y @ whole(at + "attention.wq").T).unflatten(1, (heads, size)))
        k = rotated((y @ whole(at + "attention.wk").T).unflatten(1, (groups, size)))
        v = (y @ whole(at + "attention.wv").T).unflatten(1, (groups, size))
        k, v = (z.repeat_interleave(heads // groups, dim=1) for z in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(size)
        scores += torch.full((count, count), float("-inf")).triu(1)
        x = x + torch.einsum("hts,shd->thd", scores.softmax(-1), v).flatten(1) @ whole(at + "attention.wo").T
        y = normed(x, at + "ffn_norm")
        gate, up = y @ whole(at + "feed_forward.w1").T, y @ whole(at + "feed_forward.w3").T
        x = x + (gate * torch.sigmoid(gate) * up) @ whole(at + "feed_forward.w2").T
    return normed(x, "norm") @ whole("output").T


@torch.no_grad()
def difference(folder: Path) -> float:
    """Return the largest difference between herd's scores of a folder and those of Meta's definition."""
    tokens = torch.randint(0, 64, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    wanted, model = metas_logits(folder, tokens), load_model(folder)
    assert 0.5 < float(wanted.std()) < 2
    return float((model.logits(model(torch.tensor([tokens])))[0] - wanted).abs().max())


@pytest.mark.parametrize("mp", [1, 2, 8, 16])
def test_herd_computes_what_metas_code_computes(tmp_path: Path, mp: int) -> None:
    write(tmp_path, WIDE, mp=mp)
    assert difference(tmp_path) < 1e-5


def test_a_forgotten_permutation_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = write(tmp_path, WIDE, mp=2)
    monkeypatch.setattr(meta, "to_halves", lambda weight, head_size: weight)
    assert difference(tmp_path) > 0.01
    monkeypatch.setattr(meta, "to_pairs", lambda weight, head_size: weight)
    write(tmp_path, WIDE, mp=2)
    # forgotten on both sides, the weights come back bit equal, and only the oracle knows
    assert all(torch.equal(open_source(tmp_path).read(name), tensor) for name, tensor in weights.items())
    assert difference(tmp_path) > 0.01


def by_hand(folder: Path, *, mp: int = 2) -> None:
    """Write a folder with just the keys, tensors and format of Meta's own files, without herd's writer."""
    params = {"dim": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": 2, "vocab_size": 64}
    params |= {"ffn_dim_multiplier": 1.3, "multiple_of": 32, "norm_eps": 1e-05, "rope_theta": 500000.0}
    (folder / "params.json").write_text(json.dumps(params | {"use_scaled_rope": True}))
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / 8).bfloat16()

    for rank in range(mp):
        tensors = {"tok_embeddings.weight": drawn(64 // mp, 64), "output.weight": drawn(64 // mp, 64)}
        for layer in range(2):
            tensors |= {
                f"layers.{layer}.attention.wq.weight": drawn(64 // mp, 64),
                f"layers.{layer}.attention.wk.weight": drawn(16 // mp, 64),
                f"layers.{layer}.attention.wv.weight": drawn(16 // mp, 64),
                f"layers.{layer}.attention.wo.weight": drawn(64, 64 // mp),
                f"layers.{layer}.feed_forward.w1.weight": drawn(224 // mp, 64),
                f"layers.{layer}.feed_forward.w2.weight": drawn(64, 224 // mp),
                f"layers.{layer}.feed_forward.w3.weight": drawn(224 // mp, 64),
                f"layers.{layer}.attention_norm.weight": torch.full((64,), 1.25).bfloat16(),
                f"layers.{layer}.ffn_norm.weight": torch.full((64,), 0.75).bfloat16(),
            }
        tensors |= {"norm.weight": torch.ones(64).bfloat16(), "rope.freqs": torch.rand(4).bfloat16()}
        torch.save(tensors, folder / f"consolidated.{rank:02d}.pth")


@pytest.mark.parametrize("mp", [1, 2])
def test_a_folder_like_metas_own_is_read(tmp_path: Path, mp: int) -> None:
    by_hand(tmp_path, mp=mp)
    config = load_config(tmp_path)
    assert (config.ffn_hidden, config.tie_embeddings) == (224, False)
    assert (config.rope_scaling, config.max_positions) == (RopeScaling(factor=8.0), 131_072)
    assert difference(tmp_path) < 1e-5


CASES = [(mp, groups) for groups in (8, 4) for mp in (1, 2, 4, 8, 16)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("mp", "groups"), CASES)
def test_meta_herd_hf_herd_meta_is_bit_equal(
    tmp_path: Path, mp: int, groups: int, dtype: torch.dtype, tied: bool
) -> None:
    config = WIDE.model_copy(update={"n_kv_heads": groups, "n_layers": 1, "tie_embeddings": tied})
    weights = {name: tensor.to(dtype) for name, tensor in write(tmp_path / "a", config, mp=mp, dtype=dtype).items()}
    first = open_source(tmp_path / "a")
    assert isinstance(first, MetaSource)
    assert (first.config, first.model_parallel) == (config, mp)
    write_hf(first, tmp_path / "b", dtype=dtype)
    write_hf_configs(config, tmp_path / "b", bos_id=1, eos_ids=[2], dtype=dtype)
    second = open_source(tmp_path / "b")
    assert isinstance(second, HFSource)
    for source in (first, second):
        assert source.names() == list(weights)
        assert all(source.dtype(name) == dtype for name in weights)
        assert all(torch.equal(source.read(name), tensor) for name, tensor in weights.items())
    (tmp_path / "c").mkdir()
    write_meta(second, tmp_path / "c", mp=mp, dtype=dtype)
    before, after = ranks_of(tmp_path / "a"), ranks_of(tmp_path / "c")
    assert len(before) == len(after) == mp
    for old, new in zip(before, after, strict=True):
        shapes = {name: tuple(tensor.shape) for name, tensor in new.items()}
        assert shapes == rank_shapes(config, mp) | {"output.weight": shapes["tok_embeddings.weight"]}
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) and new[name].dtype == dtype for name in old)
    names = ["consolidated.00.pth", "params.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes() for name in names)


def test_ranks_hold_what_metas_layout_says(tmp_path: Path) -> None:
    config = WIDE.model_copy(update={"tie_embeddings": True})
    weights = write(tmp_path, config, mp=8)
    ranks = ranks_of(tmp_path)
    block = "layers.1.attention."
    for rank, tensors in enumerate(ranks):
        assert torch.equal(tensors["tok_embeddings.weight"], weights["tok_embeddings.weight"][8 * rank : 8 * rank + 8])
        assert torch.equal(tensors["output.weight"], tensors["tok_embeddings.weight"])
        assert torch.equal(tensors[block + "wo.weight"], weights[block + "wo.weight"][:, 16 * rank : 16 * rank + 16])
        head = rank // 2  # 4 key/value heads on 8 ranks: each on two neighbours
        assert torch.equal(tensors[block + "wv.weight"], weights[block + "wv.weight"][8 * head : 8 * head + 8])
        # rows 0, 1, 2, ... of Meta's are the rows 0, half, 1, half + 1, ... of a head of Hugging Face's
        order = [8 * head + row for row in (0, 4, 1, 5, 2, 6, 3, 7)]
        assert torch.equal(tensors[block + "wk.weight"], weights[block + "wk.weight"][order])
        assert torch.equal(tensors["norm.weight"], weights["norm.weight"])


# What stands in the params.json of the published models (meta-llama/llama-models, models/sku_list.py).
PARAMS: dict[str, tuple[dict[str, Any], int]] = {
    "llama3-8b": ({"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 1024}, 8_030_261_248),
    "llama3-70b": ({"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096}, 70_553_706_496),
    "llama3.1-8b": ({"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 1024}, 8_030_261_248),
    "llama3.1-70b": ({"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096}, 70_553_706_496),
    "llama3.1-405b": ({"dim": 16384, "n_layers": 126, "n_heads": 128, "multiple_of": 4096}, 405_853_388_800),
    "llama3.2-1b": ({"dim": 2048, "n_layers": 16, "n_heads": 32, "multiple_of": 256}, 1_235_814_400),
    "llama3.2-3b": ({"dim": 3072, "n_layers": 28, "n_heads": 24, "multiple_of": 256}, 3_212_749_824),
}
MULTIPLIERS = {"llama3.1-405b": 1.2, "llama3.2-1b": 1.5, "llama3.2-3b": 1.0}
WIDTHS = {4096: 14336, 8192: 28672, 16384: 53248, 2048: 8192, 3072: 8192}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_params_of_published_models_give_their_shapes(tmp_path: Path, name: str) -> None:
    own, parameters = PARAMS[name]
    params = own | {"n_kv_heads": 8, "vocab_size": 128_256, "norm_eps": 1e-05, "rope_theta": 500_000.0}
    params["ffn_dim_multiplier"] = MULTIPLIERS.get(name, 1.3)
    if "llama3-" not in name:
        params["use_scaled_rope"] = True
    (tmp_path / "params.json").write_text(json.dumps(params))
    embedding = torch.rand(4, 2)
    output = embedding if "3.2" in name else embedding + 1
    torch.save({"tok_embeddings.weight": embedding, "output.weight": output.clone()}, tmp_path / "consolidated.00.pth")
    config = meta_config(tmp_path)
    assert config == published(name)
    assert config.ffn_hidden == WIDTHS[config.dim]
    assert config.rope_scaling == (None if "llama3-" in name else RopeScaling(factor=32.0 if "3.2" in name else 8.0))
    assert config.parameters() == parameters
    assert to_params(config) == params


@pytest.mark.parametrize(("mp", "n_bytes"), [(8, 101_470_976_045), (16, 51_268_302_389)])
def test_rank_files_of_405b_have_the_published_size(mp: int, n_bytes: int) -> None:
    """On 16 ranks the 8 key/value heads stand twice, which the size shows (same source; pickle and zip on top)."""
    shapes = rank_shapes(published("llama3.1-405b"), mp)
    assert 0 < n_bytes - 2 * sum(prod(shape) for shape in shapes.values()) < 400 * len(shapes)


def damaged(folder: Path, rank: int, **changes: Tensor | None) -> None:
    """Put other tensors into one rank's file; None takes one out."""
    file = folder / f"consolidated.{rank:02d}.pth"
    tensors = torch.load(file, weights_only=True)
    for name, value in changes.items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    torch.save(tensors, file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.weight": None}, r"missing tensors \['norm\.weight'\], surplus tensors \[\]"),
        ({"norm.bias": torch.zeros(64)}, r"missing tensors \[\], surplus tensors \['norm\.bias'\]"),
        ({"norm.weight": torch.zeros(63)}, r"norm\.weight is \[63\], params\.json says \[64\]"),
        ({"output.weight": torch.zeros(64, 64)}, r"output\.weight is \[64, 64\], params\.json says \[32, 64\]"),
    ],
)
def test_a_wrong_tensor_is_named_with_its_rank(tmp_path: Path, changes: dict, message: str) -> None:
    by_hand(tmp_path)
    damaged(tmp_path, 1, **changes)
    with pytest.raises(DataError, match=rf"consolidated\.01\.pth: {message}$"):
        load_model(tmp_path)


def test_ranks_in_other_formats_are_named(tmp_path: Path) -> None:
    by_hand(tmp_path)
    damaged(tmp_path, 1, **{"layers.0.attention.wo.weight": torch.zeros(64, 32)})
    with pytest.raises(DataError, match=r"layers\.0\.attention\.wo\.weight has another number format"):
        load_model(tmp_path)


def test_missing_and_odd_shards_are_named(tmp_path: Path) -> None:
    write(tmp_path, WIDE, mp=4)
    (tmp_path / "consolidated.02.pth").unlink()
    with pytest.raises(DataError, match=r"found shards \[0, 1, 3\].*copy the missing ones"):
        load_model(tmp_path)
    (tmp_path / "consolidated.03.pth").rename(tmp_path / "consolidated.02.pth")
    with pytest.raises(DataError, match=r"found shards \[0, 1, 2\], and a checkpoint has 1, 2, 4, 8 or 16"):
        load_model(tmp_path)
    for file in tmp_path.glob("*.pth"):
        file.unlink()
    with pytest.raises(DataError, match=r"no consolidated\.NN\.pth beside params\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "params.json: not JSON"),
        ("[" * 100_000, "params.json: not JSON"),
        ("[1]", "not a mapping"),
        ({"dim": None}, "key 'dim' is missing or no whole number above 0"),
        ({"n_layers": "2"}, "key 'n_layers' is missing or no whole number above 0"),
        ({"n_kv_heads": 3}, "n_heads 8 must be a multiple of n_kv_heads 3"),
        ({"quantization_args": {"group_size": 32}}, "key 'quantization_args' is not known to herd"),
        ({"lora_args": {"rank": 16, "scale": 2.0}}, "key 'lora_args' is not known to herd"),
        ({"multiple_of": 0}, "multiple_of and ffn_dim_multiplier must be positive"),
        ({"ffn_dim_multiplier": "1.3"}, "multiple_of and ffn_dim_multiplier must be positive"),
        ({"ffn_dim_multiplier": float("nan")}, "multiple_of and ffn_dim_multiplier must be positive"),
        ({"ffn_dim_multiplier": 1e308}, "multiple_of and ffn_dim_multiplier must be positive"),
        ({"dim": 10**400}, "key 'dim' is missing or no whole number above 0"),
        ({"n_layers": 10**9}, "more n_layers than 16,384"),
        ({"norm_eps": "small"}, "norm_eps"),
        ({"rope_scaling": {"factor": 4.0, "kind": "yarn"}}, "unknown key 'kind'"),
    ],
)
def test_a_params_file_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, text: Any, message: str) -> None:
    by_hand(tmp_path)
    path = tmp_path / "params.json"
    if isinstance(text, dict):
        text = json.dumps(json.loads(path.read_text()) | text)
    path.write_text(text)
    with pytest.raises((ConfigError, DataError), match=message) as told:
        load_model(tmp_path)
    assert "\n" not in str(told.value)
    assert "params.json" in str(told.value)


@pytest.mark.parametrize(
    ("changes", "mp", "message"),
    [
        ({"head_dim": 10}, 1, "Meta's format has no head_dim: 16 heads of 10 are not dim 128"),
        ({"vocab_size": 61}, 2, "vocab_size 61 can't be cut into 2 model-parallel ranks"),
        ({"n_heads": 12, "n_kv_heads": 6, "dim": 96}, 4, "n_kv_heads 6 can't be cut into 4"),
    ],
)
def test_shapes_that_metas_format_cannot_say_are_refused(tmp_path: Path, changes: dict, mp: int, message: str) -> None:
    config = WIDE.model_copy(update=changes)
    with pytest.raises(ConfigError, match=message):
        write(tmp_path, config, mp=mp)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scaling", [None, RopeScaling(factor=4.0), RopeScaling(original_max_position_embeddings=64)])
@pytest.mark.parametrize("positions", [96, 8192, 131_072])
@pytest.mark.parametrize("width", [1, 47, 160, 341, 1000])
def test_every_shape_goes_through_params_json(
    tmp_path: Path, scaling: RopeScaling | None, positions: int, width: int
) -> None:
    config = WIDE.model_copy(update={"rope_scaling": scaling, "max_positions": positions, "ffn_hidden": width})
    torch.save({"output.weight": torch.ones(1)}, tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps(to_params(config)))
    assert meta_config(tmp_path) == config
