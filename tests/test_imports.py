"""Every module imports; what must start without torch does; the command line answers at once."""

import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERD = [sys.executable, "-m", "herd"]
VERBS = ["raise", "chat", "serve", "curate", "tokenizer", "pretrain", "distil", "sft", "dpo", "guard", "eval", "card"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a wide terminal without colours."""
    plain = os.environ | {"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=plain, timeout=120, check=False)


def modules(*packages: str) -> list[str]:
    """Return the names of all modules of the packages, or of all of herd."""
    names = []
    for file in sorted((ROOT / "herd").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not packages or (len(parts) > 1 and parts[1] in packages):
            names.append(".".join(parts))
    return names


def imported(names: list[str]) -> set[str]:
    """Import modules in a fresh process; return everything that was loaded."""
    code = f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\nprint(*sys.modules)"
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_every_module_imports() -> None:
    names = modules()
    assert set(names) <= imported(names)


def test_base_data_and_card_never_load_torch() -> None:
    names = modules("base", "data", "card")
    loaded = imported(names)
    assert set(names) <= loaded
    assert "torch" not in loaded


def test_recipes_and_the_command_line_load_without_torch() -> None:
    loaded = imported(["herd.cli.app", "herd.stages.recipe", "herd.__main__"])
    assert "torch" not in loaded
    assert "numpy" not in imported(["herd.cli.app"])


def test_help_takes_under_half_a_second() -> None:
    # processor time, which a busy machine doesn't lengthen as it does the clock's
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run([*HERD, "--help"]).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5


def test_herd_alone_shows_the_verbs_in_the_order_one_meets_them() -> None:
    done = run(HERD)
    words = [line.strip("│ ").split()[:1] for line in (done.stdout + done.stderr).splitlines() if line.strip("│ ")]
    assert [first for (first,) in words if first in VERBS] == VERBS
    assert "Traceback" not in done.stderr
