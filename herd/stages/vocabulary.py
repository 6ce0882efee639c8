"""A tokenizer as GGUF keeps it, there and back: printable tokens by id, their types, merges, and the ids that end."""

from herd.base.errors import DataError
from herd.model.gguf import CONTROL, NORMAL, Vocabulary
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.hf_files import byte_characters, merges, printable
from herd.tokenizer.specials import SPECIAL_TOKENS


def to_vocabulary(tokenizer: Tokenizer, *, chat_template: str | None, eos_id: int | None = None) -> Vocabulary:
    """Return a tokenizer as plain data. `eos_id` is what ends a turn; end_of_text unless given."""
    names = printable(tokenizer)
    texts = sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
    return Vocabulary(
        tokens=(*(names[token] for token in texts), *SPECIAL_TOKENS),
        types=(*(NORMAL for _ in texts), *(CONTROL for _ in SPECIAL_TOKENS)),
        merges=tuple(f"{names[left]} {names[right]}" for left, right in merges(tokenizer)),
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id if eos_id is None else eos_id,
        eot_id=tokenizer.eot_id,
        eom_id=tokenizer.eom_id,
        pad_id=tokenizer.pad_id,
        chat_template=chat_template,
    )


def from_vocabulary(vocabulary: Vocabulary) -> Tokenizer:
    """Rebuild the tokenizer. Raises DataError where tokens, special tokens or merges are not those of one."""
    count = len(vocabulary.tokens) - len(SPECIAL_TOKENS)
    if vocabulary.tokens[count:] != SPECIAL_TOKENS:
        raise DataError(f"its last {len(SPECIAL_TOKENS)} tokens are not Llama 3's special tokens")
    values = {character: byte for byte, character in enumerate(byte_characters())}
    try:
        ranks = {bytes(values[c] for c in token): rank for rank, token in enumerate(vocabulary.tokens[:count])}
    except KeyError as error:
        raise DataError(f"a token holds {error.args[0]!r}, which stands for no byte") from None
    tokenizer = Tokenizer(ranks)
    if to_vocabulary(tokenizer, chat_template=vocabulary.chat_template).merges != vocabulary.merges:
        raise DataError("its merges are not those of its tokens")
    return tokenizer
