"""Prefill speed: prompt tokens a second until the first token is chosen, herd against its peers (see decode.py).

Run `python benchmarks/prefill.py S --prompt 512`, or with a model folder instead of S; needs the `bench` extra.
"""

from functools import partial
from operator import truediv

from arena import options, play, print_table, write_json
from decode import DEFAULT, errors, prompts, start
from forms import Forms


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, nargs="+", default=[512])
    parser.add_argument("--contestants", nargs="+", default=DEFAULT.split())
    chosen = parser.parse_args()
    forms = Forms(chosen.model, chosen.work)
    workers = start(chosen.contestants, forms, threads=chosen.threads, batch=1)
    facts = {worker.name: worker.turn("facts").value for worker in workers}
    wrong = errors(workers, forms, threads=chosen.threads)
    for length in chosen.prompt:
        args = (prompts(forms.config.vocab_size, 1, length)[0],)
        found = play(workers, "prefill", args, rate=partial(truediv, length), chosen=chosen)
        print(f"\n{forms.name}, prefill of {length} tokens, {chosen.threads} threads")
        print_table(found, facts, wrong)
        if chosen.json:
            write_json(chosen.json, model=forms.name, kind="prefill", prompt=length, rates=found.rates, errors=wrong)
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
