"""Kill -9 in the middle of each phase, start again by the same command, and compare with an
undisturbed run.

    python -m benchmarks.kill        # the quickstart in reduced size

It prints a table, and its exit code is 1 on any difference.

Final parameters and optimizers are compared bit for bit, the metrics log line by line, but
for what clocks say.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jaxtrain.build import build
from jaxtrain.checkpoints import Checkpoints
from jaxtrain.files import read_json
from jaxtrain.flags import parse
from jaxtrain.progress import Progress
from jaxtrain.tasks import make_task

REDUCED = {
    "prompts.num_problems": 512,
    "prompts.num_first_problems": 128,
    "prompts.batch_size": 64,
    "updates.policy.warm_start.num_updates": 600,
    "updates.policy.fit.num_updates": 200,
    "updates.prm.warm_start.num_updates": 60,
    "updates.prm.fit.num_updates": 60,
    "evaluation.num_problems": 256,
    "loop.num_iterations": 2,
}
# What is killed -> (the line that tells that it begins, the metric that tells how long it takes).
VICTIMS = {
    "warm start": ("compiled policy init", "0 time/policy_updates"),
    "search": ("iteration 0/2: evaluation .* done in", "1 time/search"),
    "policy updates": ("iteration 1/2: search .* done in", "1 time/policy_updates"),
    "PRM updates": ("iteration 1/2: policy updates .* done in", "1 time/prm_updates"),
    # at once: it takes a fraction of a second
    "checkpoint": ("iteration 1/2: prm updates .* done in", ""),
    "evaluation": ("iteration 1/2: prm updates .* done in", "1 time/evaluation"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    options, overrides = parser.parse_known_args()
    flags = [
        "--config",
        options.config,
        *(f"--config.{key}={value}" for key, value in REDUCED.items()),
        *overrides,
    ]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        finish(flags, root / "undisturbed")
        rows, expected = read_metrics(root / "undisturbed"), read_state(flags, root / "undisturbed")
        seconds = read_seconds(root / "undisturbed")
        print(
            f"{'killed in':16}{'after':>8}  "
            f"{'caught':8}{'resumed after':15}{'final state':25}metrics",
            flush=True,
        )
        num_bad = 0
        for number, victim in enumerate(options.victims):
            folder = root / str(number)
            begin, metric = VICTIMS[victim]
            delay = seconds[metric] / 2 if metric else 0.0
            # A phase without data takes no time: to hit it would prove nothing.
            is_caught = kill(flags, folder, begin, delay) and (not metric or delay > 0.2)
            resumed = finish(flags, folder)
            state, ours = read_state(flags, folder), read_metrics(folder)
            num_equal = sum(a == b for a, b in zip(state, expected, strict=True))
            is_same = num_equal == len(expected) and ours == rows and is_caught
            num_bad += not is_same
            told = f"{num_equal} of {len(expected)} arrays equal"
            num_same = sum(a == b for a, b in zip(ours, rows, strict=False))
            lines = f"{num_same} of {len(rows)} lines equal, {len(ours)} there"
            print(
                f"{victim:16}{delay:6.1f} s  "
                f"{'yes' if is_caught else 'NO':8}{resumed:15}{told:25}{lines}",
                flush=True,
            )
    print(
        "all equal"
        if not num_bad
        else f"{num_bad} of {len(options.victims)} differ or were not caught"
    )
    return int(num_bad > 0)


def kill(flags: list[str], folder: Path, begin: str, delay: float) -> bool:
    """Start a run and kill it `delay` seconds after the line `begin`.

    Returns False if another phase was over by then.
    """
    with start(flags, folder) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.match(begin, line):
                break
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        rest = process.stderr.read()
        return process.wait() == -signal.SIGKILL and "done in" not in rest


def finish(flags: list[str], folder: Path) -> str:
    """Run to the end by the same command; return the iteration after which it resumed."""
    with start(flags, folder) as process:
        assert process.stderr is not None
        told = process.stderr.read()
        if process.wait():
            raise RuntimeError(f"the run failed:\n{told}")
    found = re.search(r"resuming after iteration (\d+)", told)
    return f"iteration {found[1]}" if found else "nothing"


def start(flags: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    command = [sys.executable, "-m", "jaxtrain.main", *flags, "--workdir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def read_metrics(folder: Path) -> list[str]:
    """Read the metrics log as lines without what a clock measured."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        json.dumps({key: value for key, value in row.items() if not key.startswith("time/")})
        for row in rows
    ]


def read_seconds(folder: Path) -> dict[str, float]:
    """Read how long every phase took, as `iteration key`."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        f"{row['iteration']} {key}": row[key]
        for row in rows
        for key in row
        if key.startswith("time/")
    }


def read_state(flags: list[str], folder: Path) -> list[bytes]:
    """Read every array of the last checkpoint."""
    config, _ = parse(["kill", *flags])
    key = read_json(folder / "manifest.json")["run_key"]
    with (
        Progress(0) as progress,
        Checkpoints(
            folder / "checkpoints", config.checkpoints, key, is_read_only=True
        ) as checkpoints,
    ):
        abstract = build(config, make_task(config.tasks), progress).abstract_state
        assert checkpoints.newest() == config.loop.num_iterations
        state = checkpoints.restore(config.loop.num_iterations, abstract)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


if __name__ == "__main__":
    sys.exit(main())
