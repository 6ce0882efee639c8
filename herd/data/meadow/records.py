"""Pages of quoted words and the records made of them: copying out of text into JSON, as tool calls need it."""

import json
import random

from herd.data.meadow.tools import draw_arguments
from herd.data.meadow.voice import Choir


def records_text(choir: Choir, lang: str, rng: random.Random) -> str:
    """Return five to nine lines, each a quoted argument and the call that it belongs to."""
    lines = []
    for _ in range(rng.randint(5, 9)):
        name = rng.choice(("weather", "add_note", "translate", "phone_book"))
        forms, arguments, _ = draw_arguments(name, choir, lang, rng)
        asked = f'"{forms["x"]}", {forms["L"]}' if "L" in forms else f'"{forms["x"]}"'
        call = {"name": name, "parameters": arguments}
        lines.append(f"{asked}: {json.dumps(call, ensure_ascii=False)}")
    return "\n".join(lines)
