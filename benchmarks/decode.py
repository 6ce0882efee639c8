"""Decoding speed: tokens a second after the prompts, herd against its peers, same weights, same threads.

Every contestant runs `--batch` prompts of `--prompt` tokens, then `--steps` timed steps with a token for each prompt.
Rounds are interleaved and ratios taken within a round (arena.py); the error of scores is against herd in float32:
root mean square of the difference over that of the scores, both centred, after one prompt.

Run `python benchmarks/decode.py S --batch 1 8 32`, or with a model folder instead of S. Needs the `bench`, `gguf` and
`reference` extras; forms.py says what OpenVINO's models are made with.
"""

from collections.abc import Sequence
from functools import partial
from operator import truediv

import numpy as np
from arena import Worker, options, play, print_table, write_json
from forms import Forms
from peers import enter

DEFAULT = "herd:bf16 llama.cpp:q8_0 llama.cpp:q4_0-head8 llama.cpp:q4_0 openvino:int8 genai:int8 transformers:eager"
PROBE = 64


def start(specs: Sequence[str], forms: Forms, *, threads: int, batch: int) -> list[Worker]:
    """Start those contestants that can be; say of the others why not."""
    workers = []
    for spec in specs:
        worker = enter(spec, forms, threads=threads, batch=batch)
        if worker.missing:
            print(f"left out: {spec}: {worker.missing}", flush=True)
            worker.close()
        else:
            workers.append(worker)
    return workers


def prompts(vocab_size: int, batch: int, length: int) -> list[list[int]]:
    """Draw different prompts, without special tokens."""
    return np.random.default_rng(0).integers(0, vocab_size - 256, (batch, length)).tolist()


def errors(workers: Sequence[Worker], forms: Forms, *, threads: int) -> dict[str, float]:
    """Return the relative error of each contestant's scores."""
    probe = prompts(forms.config.vocab_size, 1, PROBE)[0]
    reference = enter("herd:fp32", forms, threads=threads, batch=1)
    exact = _centred(reference.turn("logits", probe).value)
    reference.close()
    found = {}
    for worker in workers:
        try:
            scores = _centred(worker.turn("logits", probe).value)
        except RuntimeError:
            continue  # not every interface shows scores
        found[worker.name] = float(np.linalg.norm(scores - exact) / np.linalg.norm(exact))
    return found


def _centred(scores: np.ndarray) -> np.ndarray:
    return scores - scores.mean()


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--contestants", nargs="+", default=DEFAULT.split())
    chosen = parser.parse_args()
    forms = Forms(chosen.model, chosen.work)
    workers = start(chosen.contestants, forms, threads=chosen.threads, batch=max(chosen.batch))
    facts = {worker.name: worker.turn("facts").value for worker in workers}
    wrong = errors(workers, forms, threads=chosen.threads)
    for batch in chosen.batch:
        args = (prompts(forms.config.vocab_size, batch, chosen.prompt), chosen.steps)
        found = play(workers, "decode", args, rate=partial(truediv, batch * chosen.steps), chosen=chosen)
        print(f"\n{forms.name}, decoding, batch {batch}, {chosen.threads} threads, prompts of {chosen.prompt}")
        print_table(found, facts, wrong)
        if chosen.json:
            write_json(chosen.json, model=forms.name, kind="decode", batch=batch, rates=found.rates, errors=wrong)
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
