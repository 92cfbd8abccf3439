"""Search on SmolLM2-135M's shape: what it computes, how many of its lanes work, and its speed.

    python -m benchmarks.search --beside CHECKOUT --torch PYTHON          # two cores: --layers 6
    python -m benchmarks.search --dtype bfloat16 --layers 30 --problems 2048 \\
        --settings num_trees=512,num_lanes=1 num_trees=1024,num_lanes=1             # a GPU

Beside it: another checkout of this project, transformers' sampling of as many lanes, and the order
of work of ReST-MCTS*'s code: one node after the other, a `generate` for every step and a call of
the value network for every step, with nothing kept between calls.

Weights are random, and so is what a token says: a step ends with probability 1/26 and a trace with
1/120. So a step has some 20 tokens, as SmolLM2's own on word problems have (21 to 24), and lengths
are geometric, which is harder on lanes than real ones. At temperature 1 no two steps are ever alike
here; the row at a low temperature is the one that could show duplicates and wasted simulations.

Every worker is a process that waits until it is told to run, so all of them run in alternation on
the same machine. Compiling is not counted. Time of cores is told too: a machine that is shared
stretches it less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxtrain.files import write_json

HERE = Path(__file__).resolve().parents[1]


class Worker:
    """A process that runs what it is told."""

    def __init__(self, kind: str, options, python: str, checkout: Path):
        file = HERE / "benchmarks" / "search_worker.py"
        command = [python, "-P", file, kind, str(options.layers), options.dtype]
        env, pipe = os.environ | {"PYTHONPATH": str(checkout)}, subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=env, cwd=checkout, stdin=pipe, stdout=pipe, text=True
        )

    def __call__(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        print(json.dumps({"do": "run"} | order), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended before it answered: {self.process.args}")
        return json.loads(line)


# What is asked of them.


def total(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Add runs up, and what is read off them."""
    x: dict[str, Any] = {name: sum(run[name] for run in runs) for name in runs[0]}
    x["tokens_a_second"] = x["tokens"] / x["seconds"]
    if "problems" in x:
        x["seconds_a_problem"] = x["seconds"] / x["problems"]
        x["cpu_a_problem"] = x["cpu_seconds"] / x["problems"]
    if "lane_tokens" in x:
        x["useful_lanes"] = x["tokens"] / x["lane_tokens"]
        x["policy_computed"] = x["policy_tokens"] / x["tokens"]
        x["prm_computed"] = x["prm_tokens"] / x["tokens"]
    return x


COLUMNS = {  # heading: (figure, format)
    "tokens": ("tokens", "8.0f"),
    "a step": ("tokens_a_step", "6.1f"),
    "policy x": ("policy_computed", "8.2f"),
    "PRM x": ("prm_computed", "6.2f"),
    "lanes": ("useful_lanes", "6.1%"),
    "duplicates": ("duplicates", "10.0f"),
    "wasted": ("wasted", "6.0f"),
    "s a problem": ("seconds_a_problem", "11.2f"),
    "CPU s": ("cpu_a_problem", "6.2f"),
    "tokens/s": ("tokens_a_second", "8.1f"),
}


def show(name: str, x: dict[str, Any]) -> None:
    """Print a row of the table."""
    if "steps" in x:
        x["tokens_a_step"] = x["tokens"] / x["steps"]
    cells = []
    for key, form in COLUMNS.values():
        width = int(form.split(".")[0])
        cells.append(f"{x[key]:{form}}" if key in x else " " * (width - 1) + "-")
    print(f"{name:38}" + "  ".join(cells), flush=True)


def bars(ours: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, tuple]:
    """Set figures beside what is asked of them: name -> (figure, relation, bar)."""
    found: dict[str, tuple] = {
        "tokens computed a token": (ours["policy_computed"], "<=", 1.3),
        "useful lanes": (ours["useful_lanes"], ">=", 0.8),
        "duplicates": (ours["duplicates"], "<=", 0),
        "wasted simulations": (ours["wasted"], "<=", 0),
    }
    if peaked := rows.get("low temperature"):
        found["duplicates, low temperature"] = (peaked["duplicates"], "<=", 0)
        found["wasted, low temperature"] = (peaked["wasted"], "<=", 0)
    if old := rows.get("other checkout"):
        ratio = ours["seconds_a_problem"] / old["seconds_a_problem"]
        found["time beside the other checkout"] = (ratio, "<=", 1 / 3)
        ratio = ours["cpu_a_problem"] / old["cpu_a_problem"]
        found["time of cores beside it"] = (ratio, "<=", 1 / 3)
    if reference := rows.get("reference's order"):
        ratio = reference["seconds_a_problem"] / ours["seconds_a_problem"]
        found["times faster than the reference"] = (ratio, ">=", 30)
    if plain := rows.get("transformers, sampling"):
        ratio = ours["tokens_a_second"] / plain["tokens_a_second"]
        found["tokens/s beside transformers"] = (ratio, ">=", 0.6)
    return found


def read_settings(text: str) -> dict[str, Any]:
    """Read key=value,key=value."""
    pairs = (part.split("=", 1) for part in text.split(",") if part)
    return {key: int(value) if value.isdigit() else value for key, value in pairs}


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    default = ["num_trees=32,num_lanes=1", "num_trees=32,num_lanes=2"]
    told = "of the search, one try each; the best goes on"
    parser.add_argument("--settings", nargs="+", default=default, help=told)
    parser.add_argument("--chunk", type=int, default=8, help="search.chunk_tokens")
    parser.add_argument("--problems", type=int, default=64, help="of a batch of this search")
    parser.add_argument("--simulations", type=int, default=4)
    parser.add_argument("--layers", type=int, default=6, help="SmolLM2-135M has 30")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--beside", type=Path, help="another checkout of this project")
    parser.add_argument("--beside-problems", type=int, default=16, help="of a batch of that one")
    parser.add_argument("--torch", default=sys.executable, help="a Python that has transformers")
    parser.add_argument("--lanes", type=int, default=64, help="that transformers samples in")
    parser.add_argument("--low", type=float, default=0.1, help="the low temperature")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--to", type=Path, default=Path("search.json"), help="the figures, JSON")
    options = parser.parse_args()

    # Start what there is.
    ours = Worker("Engine", options, sys.executable, HERE)
    old = peer = None
    if options.beside:
        old = Worker("Engine", options, sys.executable, options.beside.resolve())
    has_torch = [options.torch, "-c", "import torch, transformers"]
    if subprocess.run(has_torch, capture_output=True).returncode == 0:
        peer = Worker("Torch", options, options.torch, HERE)
    else:
        print(f"{options.torch} has no torch and transformers: left out (--torch PYTHON)")

    # One try of each setting, where there is a choice.
    print(" " * 38 + "  ".join(h.rjust(int(f.split(".")[0])) for h, (_, f) in COLUMNS.items()))
    size = {"simulations": options.simulations, "problems": options.problems}
    choices = {
        text: read_settings(text) | {"chunk_tokens": options.chunk} for text in options.settings
    }
    tries: dict[str, dict[str, Any]] = {}
    for text, settings in choices.items() if len(choices) > 1 else ():
        tries[text] = total([ours(**size, settings=settings, number=0)])
        show(text, tries[text])
    best = max(tries, key=lambda text: tries[text]["tokens_a_second"], default=options.settings[0])

    # All of them in alternation.
    chosen = size | {"settings": choices[best]}
    asked: list[tuple[str, Worker, dict[str, Any]]] = [("this search", ours, chosen)]
    if old:
        size |= {"problems": options.beside_problems, "settings": {}}
        asked.append(("other checkout", old, size))
    if peer:
        plain: dict[str, Any] = {"do": "sample", "lanes": options.lanes}
        reference: dict[str, Any] = {"do": "reference", "simulations": options.simulations}
        asked.append(("transformers, sampling", peer, plain))
        asked.append(("reference's order", peer, reference))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name, *_ in asked}
    for number in range(1, 1 + options.rounds):
        for name, worker, order in asked:
            runs[name].append(worker(**order, number=number))
            show(f"{name}, round {number}", total(runs[name][-1:]))
    rows = {name: total(found) for name, found in runs.items()}
    rows["low temperature"] = total([ours(**chosen, number=0, temperature=options.low)])
    print("in all")
    for name, row in rows.items():
        show(name, row)

    # What was asked for.
    found = bars(rows["this search"], rows)
    print()
    for name, (figure, relation, bar) in found.items():
        is_met = figure <= bar if relation == "<=" else figure >= bar
        print(f"{name:38}{figure:8.2f}  {relation} {bar:.3g}  {'met' if is_met else 'MISSED'}")
    told = {name: str(x) if isinstance(x, Path) else x for name, x in vars(options).items()}
    write_json(
        options.to, {"options": told, "best": best, "tries": tries, "rows": rows, "bars": found}
    )
    print(f"written to {options.to}")


if __name__ == "__main__":
    main()
