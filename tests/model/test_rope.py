"""RoPE against values that others published: herd's own tables can't be wrong in the same way as theirs.

Sources: torchtune's goldens, computed with Meta's reference code (pytorch/torchtune,
tests/torchtune/models/llama3_1/test_position_embeddings.py: head size 128, base 10,000, factor 8, 4,096 positions);
the settings at which litgpt compares (Lightning-AI/litgpt, tests/test_rope.py: head sizes 32 and 64, base 50,000,
no scaling and factors 8 and 32, up to 131,072 positions), there as here against transformers' tables.
"""

import math

import pytest
import torch
from toys import TOY

from herd.model.config import ModelConfig, RopeScaling, to_hf
from herd.model.published import PUBLISHED
from herd.model.rope import inverse_frequencies, rotate, rotation_table, turning


def shape(head: int, *, theta: float, factor: float | None) -> ModelConfig:
    """Return a toy with such heads; the factors and the original context are the published ones."""
    scaling = RopeScaling(factor=factor) if factor else None
    return TOY.model_copy(update={"head_dim": head, "rope_theta": theta, "rope_scaling": scaling})


TORCHTUNE = shape(128, theta=10_000.0, factor=8.0)


def test_the_table_has_the_sums_of_metas_reference() -> None:
    cos, sin = rotation_table(inverse_frequencies(TORCHTUNE), torch.arange(4096))
    table = torch.stack((cos[:, :64], sin[:, :64]), dim=-1)
    assert float(table.sum()) == pytest.approx(91_141.7656, abs=0.01)
    assert float(table.mean()) == pytest.approx(0.1738, abs=5e-5)
    assert float(table.max()) == 1.0


def test_turned_vectors_have_the_sums_of_metas_reference() -> None:
    drawn_bthd = torch.randn(4, 2048, 32, 128, generator=torch.Generator().manual_seed(0))
    # the goldens turn neighbouring pairs, herd the two halves of a head
    halves = torch.cat((drawn_bthd[..., 0::2], drawn_bthd[..., 1::2]), dim=-1).transpose(1, 2)
    del drawn_bthd
    table = rotation_table(inverse_frequencies(TORCHTUNE), torch.arange(2048).unsqueeze(0))
    turned = rotate(halves, *turning(*table, torch.float32))
    # 33 million float32 added up in another order: the last digit published may differ
    assert float(turned.sum()) == pytest.approx(-83.1523, abs=2e-3)
    assert float(turned.mean()) == pytest.approx(-2.4781e-06, abs=2e-10)
    assert float(turned.max()) == pytest.approx(5.4625, abs=5e-5)
    assert abs(float(halves.sum()) + 83.1523) > 1000  # and not because turning changed nothing


LITGPT = {
    "Llama 3": shape(64, theta=50_000.0, factor=None),
    "Llama 3.1": shape(32, theta=50_000.0, factor=8.0),
    "Llama 3.2": shape(32, theta=50_000.0, factor=32.0),
}


@pytest.mark.parametrize("config", [*LITGPT.values(), *(entry.config for entry in PUBLISHED.values())])
def test_the_table_is_that_of_transformers_to_the_last_position(config: ModelConfig) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    values = to_hf(config, bos_id=1, eos_ids=[2])
    del values["torch_dtype"], values["architectures"]
    table = LlamaRotaryEmbedding(transformers.LlamaConfig(**values))
    frequencies = inverse_frequencies(config)
    assert torch.equal(frequencies, table.inv_freq)
    positions = torch.tensor([[*range(300), *range(8184, 8200), 20_000, *range(131_056, 131_072)]])
    ours = rotation_table(frequencies, positions)
    for mine, theirs in zip(ours, table(torch.zeros(1), positions), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaling_is_the_paper_s_three_bands(factor: float) -> None:
    """In float64 and wave by wave: kept below 2,048 positions, stretched above 8,192, between them blended."""
    config = shape(128, theta=500_000.0, factor=factor)
    wanted, bands = [], set()
    for i in range(64):
        wave = 2 * math.pi * 500_000.0 ** (2 * i / 128)
        kept = min(1.0, max(0.0, (8192 / wave - 1) / 3))
        bands.add("blended" if 0 < kept < 1 else kept)
        wanted.append((kept + (1 - kept) / factor) * 2 * math.pi / wave)
    assert bands == {0.0, "blended", 1.0}
    torch.testing.assert_close(inverse_frequencies(config).double(), torch.tensor(wanted).double(), rtol=3e-6, atol=0)
