"""Who drafts for a model of a run, by name."""

from pathlib import Path

import pytest
import torch
from toys import TOY, byte_tokenizer, save_model, toy_model

from herd.base.errors import HerdError
from herd.engine.request import Request, Sampling
from herd.runtime.config import RuntimeConfig
from herd.runtime.device import Machine, set_up
from herd.stages.models import open_draft, open_engine
from herd.tokenizer.bpe import Tokenizer

BYTES = byte_tokenizer()


def made(folder: Path, tokenizer: Tokenizer, *, n_layers: int) -> Path:
    """Write a model with a tokenizer."""
    model = toy_model(TOY.model_copy(update={"vocab_size": tokenizer.n_vocab, "n_layers": n_layers}))
    folder.mkdir(parents=True)
    save_model(
        dict(model.named_parameters()), model.config, folder, bos_id=tokenizer.bos_id, eos_ids=[tokenizer.eos_id]
    )
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    (path / "recipe.yaml").write_text("name: toy\n")
    made(path / "flagship/instruct", BYTES, n_layers=2)
    made(path / "flagship/base", BYTES, n_layers=2)
    made(path / "siblings/small/instruct", BYTES, n_layers=1)
    made(path / "siblings/small/base", BYTES, n_layers=3)
    made(path / "siblings/other/base", Tokenizer({bytes((255 - byte,)): byte for byte in range(256)}), n_layers=1)
    return path


@pytest.fixture(scope="module")
def machine() -> Machine:
    return set_up(RuntimeConfig(dtype="float32", threads=1))


def layers(run: Path, name: str, machine: Machine, *, of: str) -> int:
    """Return how many layers the model has that drafts."""
    draft = open_draft(name, run / of, machine)
    assert isinstance(draft, torch.nn.Module)
    return draft.config.n_layers


def test_a_sibling_drafts_by_name_and_its_base_model_for_a_base_model(run: Path, machine: Machine) -> None:
    assert layers(run, "small", machine, of="flagship/instruct") == 1
    assert layers(run, "small", machine, of="flagship/base") == 3
    assert layers(run, str(run / "siblings/small/base"), machine, of="flagship/instruct") == 3
    assert open_draft("ngram", run / "flagship/base", machine) == "ngram"


def test_what_cant_draft_is_said(run: Path, machine: Machine) -> None:
    with pytest.raises(HerdError, match="no draft 'smal'; give ngram, other, small, or a model folder"):
        open_draft("smal", run / "flagship/base", machine)
    with pytest.raises(HerdError, match=r"can't draft for .*: their tokenizers differ"):
        open_draft("other", run / "flagship/base", machine)


def test_an_opened_engine_drafts(run: Path, machine: Machine) -> None:
    request = Request((1, 2, 3), Sampling(max_tokens=40))
    plain, drafting = (
        open_engine(run / "flagship/instruct", machine, slots=2, draft=draft).generate([request])[0]
        for draft in (None, "small")
    )
    assert plain.ids == drafting.ids
