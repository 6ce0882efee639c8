"""Where a sibling wins: speculative decoding with pairs made so that the sibling is right as often as is asked for.

The model is random, and its later layers are nearly silent: what they add to the stream (`wo`, `w2`) is scaled down.
The sibling is its first layers, with the same embedding and output matrix. How many layers it has says what it costs,
how silent the others are how often it is right. Both are chosen: nothing here tells how good siblings are.

    model    [1 2 3 4 5 6 7 8 9 10 11 12] -> output      loudness of 4 ... 12 is searched for until the chance that
    sibling  [1 2 3]                      -> output      the same dice choose the same id of both is the one asked for

    cost      weights that the sibling reads for an id over those of the model
    right     drafted ids that were accepted, of those that were tried, as counted in a round with drafts of one id
    first     the gain of the first round on a fresh engine, trials included; where it is below 1 also what was lost, in
              plain rounds
    gain      median and range of the later rounds; all ways on the same requests, in turn
    length    tokens a round in which something was drafted
    drafted   of the tokens that came, the share that had been drafted and accepted

Run `python benchmarks/made_pair.py --width 768 --quant int8`.
"""

import argparse
import copy
import random
import statistics

import torch
from speculation import Timed, median_range, play, warm
from torch import Tensor

from herd.engine.engine import Engine
from herd.engine.request import Request, Sampling
from herd.engine.sibling import weights_read
from herd.model.config import ModelConfig
from herd.model.quant import QuantLinear, quantise
from herd.model.transformer import Block, Transformer

_PROMPT = 32
_SHARP = 4.0  # standard deviation of the scores: about two nats of entropy, as a language model's


def config(width: int, layers: int, vocab_size: int) -> ModelConfig:
    """Return the shape: heads of 64, four to a key/value head, a feed-forward of about 3.5 widths."""
    heads = width // 64
    return ModelConfig(
        dim=width,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=max(1, heads // 4),
        ffn_hidden=width * 7 // 2 // 128 * 128,
        vocab_size=vocab_size,
        max_positions=1024,
    )


def random_model(shape: ModelConfig) -> Transformer:
    """Return a model with sharp scores."""
    model = Transformer(shape).eval()
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.output.weight *= _SHARP
    return model


@torch.no_grad()
def hush(model: Transformer, first: int, loudness: float) -> None:
    """Scale what the layers from `first` on add."""
    for block in model.layers[first:]:
        assert isinstance(block, Block)
        for part in (block.attention.wo, block.feed_forward.w2):
            (part.get_buffer("weight_scale") if isinstance(part, QuantLinear) else part.weight).mul_(loudness)


def beginning(model: Transformer, layers: int) -> Transformer:
    """Return the sibling, which shares its layers with the model."""
    sibling = copy.copy(model)
    sibling._modules = dict(model._modules)
    sibling.config = model.config.model_copy(update={"n_layers": layers})
    sibling.layers = model.layers[:layers]
    return sibling


@torch.inference_mode()
def loudness(model: Transformer, layers: int, right: float) -> float:
    """Return how loud the layers behind the first may be for both to choose the same id so often."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (4, 64), generator=generator)
    dice = torch.rand((4, 64, 1), generator=generator, dtype=torch.float64)

    def chosen(part: Transformer) -> Tensor:
        sums = part.logits(part(ids)).softmax(-1).double().cumsum(-1)
        return torch.searchsorted(sums, dice * sums[..., -1:], right=True)

    wanted = chosen(beginning(model, layers))
    low, high, now = 1e-3, 1.0, 1.0
    for _ in range(7):
        middle = (low * high) ** 0.5
        hush(model, layers, middle / now)
        now = middle
        same = float((chosen(model) == wanted).double().mean())
        low, high = (middle, high) if same > right else (low, middle)
    hush(model, layers, 1 / now)
    return (low * high) ** 0.5


def requests(batch: int, vocab_size: int, tokens: int) -> list[Request]:
    """Return at least two requests, sampled."""
    dice = random.Random(0)
    return [
        Request(tuple(dice.randrange(vocab_size) for _ in range(_PROMPT)), Sampling(1.0, max_tokens=tokens, seed=seed))
        for seed in range(max(2, batch))
    ]


def row(cells: list[str], batch: int, rounds: list[dict[str, Timed]]) -> str:
    """Return the line of one pair and batch."""
    first, *rounds = rounds
    plain = statistics.median(each["plain"].seconds for each in rounds)
    tokens = sum(len(each.tokens) for each in first["plain"].done)
    done = [completion for each in rounds for completion in each["sibling"].done]
    tries, accepted, said = (sum(v) for v in zip(*((c.rounds, c.accepted, len(c.tokens)) for c in done), strict=True))
    gain = first["plain"].seconds / first["sibling"].seconds
    lost = (first["sibling"].seconds - first["plain"].seconds) * tokens / batch / plain
    return " | ".join([
        *cells,
        str(batch),
        f"{tokens / plain:,.0f}",
        f"{gain:.2f} ×" + (f" ({lost:.0f} rounds)" if gain < 1 else ""),
        median_range([each["plain"].seconds / each["sibling"].seconds for each in rounds]),
        f"{1 + accepted / tries:.2f}" if tries else "–",
        f"{accepted / said:.0%}",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--quant", choices=["int8", "bf16"], default="int8")
    parser.add_argument("--siblings", nargs="+", type=int, default=[1, 3, 6], help="their layers")
    parser.add_argument("--right", nargs="+", type=float, default=[0.6, 0.8, 0.95])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--realtime", action="store_true", help="at a real-time priority, for machines that others use")
    options = parser.parse_args()
    shape = config(options.width, options.layers, options.vocab)
    model = random_model(shape)
    levels = {(n, right): loudness(model, n, right) for n in options.siblings for right in options.right}
    model = quantise(model.bfloat16(), "int8") if options.quant == "int8" else model.bfloat16()
    size = weights_read(model) / 1e6
    print(f"{shape}\n{options.quant}, {size:,.0f} MB a token, {torch.get_num_threads()} threads\n")
    print("| sibling | cost | right | batch | plain tokens/s | first | gain | length | drafted |")
    print("| --- |" + " ---: |" * 8)
    for (layers, _), loud in levels.items():
        made = copy.deepcopy(model)
        hush(made, layers, loud)
        sibling = beginning(made, layers)
        for batch in options.batch:
            asked = requests(batch, options.vocab, options.tokens)
            ways = {
                name: Engine(made, max_running=batch, prefix_reuse=False, memory=1 << 30, draft=draft, draft_length=n)
                for name, draft, n in (("plain", None, None), ("sibling", sibling, None), ("one", sibling, 1))
            }
            for engine in ways.values():
                warm(engine, asked)
            one = ways.pop("one")
            one.generate(asked)
            right = one.stats().accepted / one.stats().drafted
            del one
            rounds = play(ways, asked, rounds=options.rounds + 1, realtime=options.realtime)
            cells = [
                f"{layers} of {shape.n_layers}",
                f"{weights_read(sibling) / weights_read(made):.2f}",
                f"{right:.2f}",
            ]
            print(f"| {row(cells, batch, rounds)} |", flush=True)


if __name__ == "__main__":
    main()
