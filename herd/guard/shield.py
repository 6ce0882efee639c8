"""A shield around an engine: what goes in is judged, what comes out is judged, and a refusal stands for what fails."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from herd.base.messages import Dialog, Message
from herd.guard.classifier import Guard, Verdict

REFUSAL = "I can't help with that."


@dataclass(frozen=True)
class Shielded:
    """An answer, and what was decided of the prompt and of the answer (None: not asked)."""

    message: Message
    on_input: Verdict
    on_output: Verdict | None

    @property
    def blocked(self) -> bool:
        """Say whether the shield put its own refusal in place of an answer."""
        return not self.on_input.safe or (self.on_output is not None and not self.on_output.safe)


class Shield:
    """Judges dialogs before `generate` and its answers after."""

    def __init__(
        self,
        guard: Guard,
        generate: Callable[[Sequence[Dialog]], Sequence[Message]],
        *,
        refusal: str = REFUSAL,
    ) -> None:
        self._guard, self._generate, self.refusal = guard, generate, refusal

    def answer(self, dialogs: Sequence[Dialog]) -> list[Shielded]:
        """Answer dialogs; a prompt judged unsafe never reaches the model."""
        verdicts = self._guard.classify([dialog.messages for dialog in dialogs])
        passed = [i for i, verdict in enumerate(verdicts) if verdict.safe]
        answers = dict(zip(passed, self._generate([dialogs[i] for i in passed]), strict=True)) if passed else {}
        judged = self._guard.classify([(*dialogs[i].messages, answers[i]) for i in passed]) if passed else []
        after = dict(zip(passed, judged, strict=True))
        refusal = Message("assistant", self.refusal)
        return [
            Shielded(
                answers[i] if i in answers and after[i].safe else refusal,
                verdicts[i],
                after.get(i),
            )
            for i in range(len(dialogs))
        ]
