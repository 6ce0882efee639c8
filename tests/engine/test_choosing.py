"""How tokens are chosen, where an answer is cut, and what a grammar allows."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import TOY, byte_tokenizer, toy_model

from herd.base.errors import HerdError
from herd.engine.engine import Engine
from herd.engine.request import Completion, Request, Sampling, Token
from herd.engine.sampler import Picker, choose
from herd.engine.stops import StopFinder
from herd.tokenizer.bpe import StreamDecoder

TOKENIZER = byte_tokenizer()


def picked(scores: list[float], *, prompt: tuple[int, ...] = (), said: tuple[int, ...] = (), **settings: float) -> int:
    """Return the id that a request chooses after it said some."""
    picker = Picker(Request(prompt, Sampling(**settings)))  # type: ignore[arg-type]
    for token in said:
        picker.accept(token)
    (token,) = choose(torch.tensor([scores]), [picker])
    assert token is not None
    assert token.logprob == pytest.approx(torch.tensor(scores).log_softmax(0)[token.id].item())
    return token.id


def test_penalties_are_those_of_their_definitions() -> None:
    scores = [2.0, 1.5, -1.0, -1.3]
    # divided where positive, multiplied where negative, prompt and answer alike
    assert picked(scores, prompt=(0,), repetition_penalty=1.3) == 0
    assert picked(scores, prompt=(0,), repetition_penalty=1.4) == 1
    assert picked(scores, said=(0, 0, 0), repetition_penalty=1.3) == 0  # however often
    assert picked([-1.0, -1.2], prompt=(0,), repetition_penalty=1.1) == 0
    assert picked([-1.0, -1.2], prompt=(0,), repetition_penalty=1.3) == 1
    # of the answer only: once for being there, and for each time
    assert picked(scores, prompt=(0,), presence_penalty=9.0, frequency_penalty=9.0) == 0
    assert picked(scores, said=(0, 0, 0), presence_penalty=0.4) == 0
    assert picked(scores, said=(0, 0, 0), presence_penalty=0.6) == 1
    assert picked(scores, said=(0,), frequency_penalty=0.4) == 0
    assert picked(scores, said=(0, 0), frequency_penalty=0.4) == 1


def test_biases_are_added() -> None:
    assert picked([2.0, 1.5, 0.0], logit_bias={2: 1.9}) == 0
    assert picked([2.0, 1.5, 0.0], logit_bias={2: 2.1}) == 2
    assert picked([2.0, 1.5, 0.0], logit_bias={0: -100.0}) == 1


def drawn(scores: list[float], settings: list[Sampling], n: int = 3000) -> list[dict[int, float]]:
    """Return for each of several settings, all in one batch, how often each id comes."""
    pickers = [Picker(Request((), setting)) for setting in settings]
    counts: list[dict[int, int]] = [{} for _ in settings]
    for _ in range(n // 50):
        for i, token in enumerate(choose(torch.tensor([scores] * 50 * len(settings)), pickers * 50)):
            assert token is not None
            own = counts[i % len(settings)]
            own[token.id] = own.get(token.id, 0) + 1
    return [{i: c / n for i, c in sorted(own.items())} for own in counts]


def test_each_row_of_a_batch_has_its_own_settings() -> None:
    scores = [math.log(p) for p in (0.1, 0.5, 0.25, 0.15)]
    settings = [
        Sampling(1.0, seed=1),
        Sampling(),
        Sampling(1.0, min_p=0.29, seed=2),  # 0.145 and more
        Sampling(1.0, top_k=3, top_p=0.8, seed=3),  # 0.5, 0.25 and 0.15 of 0.9: the first two are 0.83
        Sampling(2.0, min_p=0.6, seed=4),  # at temperature 2 the ratios are their roots: 0.25/0.5 -> 0.71
    ]
    plain, greedy, min_p, both, hot = drawn(scores, settings)
    assert plain == pytest.approx({0: 0.1, 1: 0.5, 2: 0.25, 3: 0.15}, abs=0.04)
    assert greedy == {1: 1.0}
    assert min_p == pytest.approx({1: 0.5 / 0.9, 2: 0.25 / 0.9, 3: 0.15 / 0.9}, abs=0.04)
    assert both == pytest.approx({1: 2 / 3, 2: 1 / 3}, abs=0.04)
    assert set(hot) == {1, 2}


@pytest.mark.parametrize("flat", [False, True])
def test_a_nucleus_of_a_large_vocabulary_is_exact(flat: bool) -> None:
    """The likeliest 1,024 are looked at first: steep scores are settled there, flat ones aren't."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5000, generator=generator) * (0.1 if flat else 4.0)
    chances, order = scores.softmax(0).sort(descending=True)
    inside = set(order[chances.cumsum(0) - chances < 0.6].tolist())
    assert (len(inside) > 1024) == flat
    pickers = [Picker(Request((), Sampling(1.0, top_p=0.6, seed=seed))) for seed in range(800)]
    ids = {token.id for token in choose(scores.expand(800, -1), pickers) if token}
    assert ids <= inside
    assert len(ids) > min(20, len(inside) // 2)


def test_alternatives_come_best_first_and_only_for_those_who_ask() -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0], [1.0, 2.0, 3.0]])
    logprobs = scores.log_softmax(-1)
    pickers = [Picker(Request((), Sampling(top_logprobs=n))) for n in (0, 2, 9)]
    one, two, all_ = (t for t in choose(scores, pickers) if t)
    assert one == Token(1, pytest.approx(logprobs[0, 1].item()))
    assert [i for i, _ in two.top] == [0, 2]
    assert [p for _, p in two.top] == pytest.approx([logprobs[1, 0].item(), logprobs[1, 2].item()])
    assert [i for i, _ in all_.top] == [2, 1, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": math.inf},
        {"frequency_penalty": math.nan},
        {"temperature": math.nan},
        {"logit_bias": {1: math.inf}},
        {"top_logprobs": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(HerdError, match="sampling out of range"):
        Sampling(**wrong)


@given(
    st.text(alphabet="abé😀\n", max_size=30),
    st.lists(st.text(alphabet="abé😀", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
)
def test_a_stop_string_is_found_with_its_last_byte_wherever_it_lies(text: str, strings: tuple[str, ...]) -> None:
    """One token is one byte here, so that characters and strings cross every border."""
    finder, decoder, shown = StopFinder(TOKENIZER, strings), StreamDecoder(TOKENIZER), ""
    places = [(text.find(s), s) for s in strings if s in text]
    first_end = min((place + len(s) for place, s in places), default=None)
    for byte in text.encode():
        found = finder.push(byte)
        shown += decoder.push(byte)
        visible = shown[: len(shown) - finder.cut]
        if found:
            assert len(shown) == first_end
            assert visible == text[: min(p for p, s in places if p + len(s) <= len(shown))]
            return
        held = (n for s in strings for n in range(1, len(s)) if shown.endswith(s[:n]))
        assert finder.cut == max(held, default=0)
    assert first_end is None


@dataclass
class Script:
    """A grammar that allows one sequence of ids, then the end."""

    ids: tuple[int, ...]
    at: int = 0
    end: int | None = 0

    def allowed(self) -> torch.Tensor:
        """Return what comes next."""
        mask = torch.zeros(TOY.vocab_size, dtype=torch.bool)
        if self.at < len(self.ids):
            mask[self.ids[self.at]] = True
        elif self.end is not None:
            mask[self.end] = True
        return mask

    def accept(self, token_id: int) -> None:
        """Go on."""
        assert token_id == self.ids[self.at]
        self.at += 1

    def fork(self) -> "Script":
        """Return a copy."""
        return replace(self)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("end", [0, None])
def test_a_grammar_is_followed_through_preemption_and_may_be_asked_again(temperature: float, end: int | None) -> None:
    script = Script((5, 17, 60, 2, 2, 9, 11, 12), end=end)
    wanted = [*script.ids, *([0] if end == 0 else [])]
    held = Request((1, 2, 3), Sampling(temperature, max_tokens=20), frozenset({0}), constraint=script, priority=-1)
    free = [Request((i, *range(12)), Sampling(max_tokens=12)) for i in range(2)]
    engine = Engine(toy_model(), blocks=8, block_size=4)
    for _ in range(2):
        done = engine.generate([held, *free])
        assert (done[0].ids, done[0].finish_reason) == (wanted, "stop")
    assert script.at == 0
    assert engine.stats().preemptions > 0
    # log-probabilities stay the model's own
    assert done[0].tokens[0].logprob < -1e-3


def stopped(strings: tuple[str, ...], most: int = 40) -> tuple[Completion, str, list[str]]:
    """Return an answer of a model of bytes, its text, and what a stream showed after each token."""
    config = TOY.model_copy(update={"vocab_size": TOKENIZER.n_vocab})
    engine = Engine(toy_model(config), tokenizer=TOKENIZER)
    bias = dict.fromkeys(b"abcd", 50.0)
    sampling = Sampling(1.0, max_tokens=most, seed=3, logit_bias=bias)
    engine.submit(Request((1, 2), sampling, frozenset(TOKENIZER.stop_ids), stop_strings=strings))
    decoder, text, shown, completion = StreamDecoder(TOKENIZER), "", [], None
    while completion is None:
        (event,) = engine.step()
        assert event.token is not None
        text += decoder.push(event.token.id)
        shown.append(text[: len(text) - event.cut])
        completion = event.completion
    return completion, completion.text(TOKENIZER), shown


def test_an_answer_ends_before_its_stop_string_and_a_stream_never_shows_its_beginning() -> None:
    whole, text, shown = stopped(("zz",))
    assert (whole.finish_reason, len(text), shown[-1]) == ("length", 40, text)
    stop = text[10:13]
    place = text.index(stop)
    completion, cut_text, shown = stopped(("zz", stop))
    assert (completion.finish_reason, completion.cut, cut_text) == ("stop", 3, text[:place])
    assert len(completion.ids) == place + 3
    assert all(text[:place].startswith(piece) for piece in shown)
    assert shown[-1] == text[:place]
    # what only looked like a beginning is shown in the end
    assert stopped((text[38:40] + "z",))[2][-1] == text


def test_the_log_probabilities_of_a_prompt_come_with_its_answer_in_any_chunks() -> None:
    prompt = tuple(range(3, 40))
    request = Request(prompt, Sampling(max_tokens=2, prompt_logprobs=True))
    for chunk in (1, 3, 16, 512):
        engine = Engine(toy_model(), prefill_chunk=chunk)
        wanted = engine.score([prompt])[0]
        for _ in range(2):  # the second time the cache knows the prompt
            (done,) = engine.generate([request])
            assert done.prompt_logprobs == pytest.approx(wanted, abs=1e-5)
    assert engine.generate([Request((3,), Sampling(prompt_logprobs=True))])[0].prompt_logprobs == ()
