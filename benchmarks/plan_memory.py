"""What `--plan` predicts against what a run takes: made-up weights in the shape of a config, one
short iteration.

    python -m benchmarks.plan_memory --config configs/h100.py:0.5b      # needs the hardware of the
    config python -m benchmarks.plan_memory --config configs/h100.py

Weights and problems are made up: nothing is solved, so the policy is fitted on demonstrations and
the PRM not at all. Shapes, programs and the order of a run are the real ones. The peak is the
allocator's own on an accelerator, that of the process on a CPU, where compilers and Python count
too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from benchmarks.load_memory import peak, write_made_up
from jaxtrain.build import build
from jaxtrain.flags import parse
from jaxtrain.hub.export import fast_tokenizer
from jaxtrain.main import main as run
from jaxtrain.plan import GIB, bytes_here, devices_of, programs, stand_in
from jaxtrain.progress import Progress
from jaxtrain.sharding import make_mesh
from jaxtrain.tokenizers import byte_tokenizer

CALL = "import sys; from benchmarks.plan_memory import {0}; {0}(sys.argv[1:])"
SHORT = {
    "tasks.num_dev": 0,
    "tasks.num_test": 16,
    "tasks.num_demonstrations": 16,
    "prompts.style": "plain",
    "updates.policy.fit.num_updates": 2,
    "updates.policy.warm_start.num_updates": 2,
    "updates.prm.fit.num_updates": 2,
    "updates.prm.warm_start.num_updates": 2,
    "checkpoints.num_kept": 1,
    "evaluation.num_problems": 16,
    "loop.num_iterations": 1,
}


def predict(flags: list[str]) -> None:
    """Print the memory of every program, the State included, in GiB per device."""
    config = parse(["predict", *flags])[0]
    devices, _, is_compiled = devices_of(config.sharding.topology)
    mesh = make_mesh(config.sharding, devices)
    fns = build(config, stand_in(config), Progress(0), mesh=mesh)
    state = bytes_here(fns.abstract_state)
    found = {
        name: (state + p.temporaries + p.results) / GIB
        for name, p in programs(config, fns, mesh, is_compiled)
    }
    print(json.dumps(found))


def measure(flags: list[str]) -> None:
    """Run; print the peak in GiB."""
    before = peak()
    if run(["measure", *flags]):
        sys.exit(1)
    stats = jax.devices()[0].memory_stats()
    print(json.dumps(stats["peak_bytes_in_use"] / GIB if stats else peak() - before))


def call(name: str, flags: list[str]):
    """Call one of the two in a process of its own. Returns what it printed last."""
    told = subprocess.run(
        [sys.executable, "-c", CALL.format(name), *flags], stdout=subprocess.PIPE, text=True
    )
    if told.returncode:
        sys.exit(told.stdout + f"{name} failed")
    return json.loads(told.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/h100.py")
    options, overrides = parser.parse_known_args()
    flags = ["--config", options.config, *overrides]
    config = parse(["plan_memory", *flags])[0]
    predicted = call("predict", flags)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "model").mkdir()
        write_made_up(root / "model", config.model)
        fast_tokenizer(byte_tokenizer()).save_pretrained(str(root / "model"))
        size = config.prompts.batch_size
        rows = [
            {"question": f"{n} + {n} = ?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
            for n in range(size + 32)
        ]
        (root / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        short = SHORT | {"prompts.num_problems": size, "prompts.num_first_problems": size}
        short |= {"hub.pretrained": root / "model", "tasks.jsonl.path": root / "sums.jsonl"}
        short_flags = [f"--config.{key}={value}" for key, value in short.items()]
        measured = call("measure", [*flags, *short_flags, "--workdir", str(root / "run")])
    for program, needed in predicted.items():
        print(f"predicted {needed:8.2f} GiB  {program}")
    print(
        f"measured  {measured:8.2f} GiB  the whole run: {measured / max(predicted.values()):.2f} "
        "times the largest"
    )


if __name__ == "__main__":
    main()
