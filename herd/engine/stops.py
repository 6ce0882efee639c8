"""Stop strings, found as soon as the token that completes one arrives, wherever the token borders lie."""

from herd.tokenizer.bpe import StreamDecoder, Tokenizer


class StopFinder:
    """Watches one answer. `cut` is how many characters at the end of its text are a stop string or may become one."""

    def __init__(self, tokenizer: Tokenizer, strings: tuple[str, ...]) -> None:
        self.cut = 0
        self._decoder = StreamDecoder(tokenizer)
        self._strings = strings
        self._longest = max(map(len, strings))
        self._tail = ""  # what a stop string may still begin in

    def push(self, token_id: int) -> bool:
        """Take one id; say whether a stop string is complete. The earliest one in the text counts."""
        self._tail += self._decoder.push(token_id)
        places = [place for place in map(self._tail.find, self._strings) if place >= 0]
        if places:
            self.cut = len(self._tail) - min(places)
            return True
        self._tail = self._tail[max(0, len(self._tail) - self._longest + 1) :]
        ends = (self._tail[start:] for start in range(len(self._tail)))
        self.cut = next((len(end) for end in ends if any(s.startswith(end) for s in self._strings)), 0)
        return False
