"""Greedy accuracy of the quickstart against its control: the same number of policy updates on D_S0 alone.

    python -m benchmarks.control --seeds 3        # runs whatever is not on disk yet, then prints the table

The arm `jaxtrain` is the plain command in runs/control/jaxtrain_<seed>. The arm `control` makes the same warm start
with the same keys, then fits the policy to the demonstrations again wherever the loop would fit it to its own traces.
Both are scored greedily on the same test problems.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from jaxtrain.build import build
from jaxtrain.flags import parse
from jaxtrain.intervals import wilson
from jaxtrain.iteration import Purpose, Run, explore, fit, judge
from jaxtrain.labels import counts
from jaxtrain.metrics import MetricsLog
from jaxtrain.progress import Progress
from jaxtrain.tasks import make_task
from jaxtrain.workdir import open_workdir

ROOT = Path("runs/control")


def run_control(flags: list[str], folder: Path) -> list[float]:
    """Fit the policy to D_S0 in every iteration; return its greedy accuracy after each."""
    config, _ = parse(["control", *flags])
    task = make_task(config.tasks)
    with open_workdir(folder, asdict(config), {}) as workdir, MetricsLog(folder) as log:
        log.truncate(-1)
        with Progress(config.loop.num_iterations) as progress:
            fns = build(config, task.tokenizer, progress)
            run = Run(config, task, fns, workdir, log, progress)
            batches, _ = run.encode(getattr(task, config.evaluation.split)[: config.evaluation.num_problems])
            key = fns.problem_keys(0, int(Purpose.INIT), np.zeros(1, np.int32))[0]
            rows, _ = run.demonstrations()
            policy, accuracies = fns.init_policy(key), []
            for i in range(config.loop.num_iterations + 1):
                policy = fit(run, i, "policy", fns.update_policy, policy, run.policy_batches(i, rows))
                prm = fns.init_prm(policy.params)  # greedy decoding does not read it
                trees = [
                    explore(run, fns.greedy, i, Purpose.GREEDY, k, b, policy, prm, 0.0) for k, b in enumerate(batches)
                ]
                tallies = [counts(tree, judge(run, tree)) for tree in trees]
                total = sum(t["num_trees"] for t in tallies)
                accuracies.append(sum(t["num_correct"] for t in tallies) / total)
                low, high = wilson(sum(t["num_correct"] for t in tallies), total)
                metrics = {"accuracy": accuracies[-1], "low": low, "high": high, "num_problems": total}
                log.append(i, {f"evaluation/greedy/{name}": value for name, value in metrics.items()})
    return accuracies


def greedy_accuracies(folder: Path) -> list[float]:
    """Read greedy accuracy per iteration from a metrics log."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["evaluation/greedy/accuracy"] for row in rows if "evaluation/greedy/accuracy" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default="configs/quickstart.py")
    options, overrides = parser.parse_known_args()
    gains, margins = [], []
    for seed in range(options.seeds):
        flags = ["--config", options.config, f"--config.seed={seed}", *overrides]
        ours, theirs = ROOT / f"jaxtrain_{seed}", ROOT / f"control_{seed}"
        subprocess.run([sys.executable, "-m", "jaxtrain.main", *flags, "--workdir", str(ours)], check=True)
        control = greedy_accuracies(theirs) if (theirs / "metrics.jsonl").exists() else []
        reached = greedy_accuracies(ours)
        if len(control) < len(reached):
            control = run_control(flags, theirs)
        gains.append(reached[-1] - reached[0])
        margins.append(reached[-1] - control[-1])
        print(f"seed {seed}: jaxtrain {show(reached)}   control {show(control)}", flush=True)
    print(f"mean gain {np.mean(gains):+.1%} (each {show(gains)}), above the control {np.mean(margins):+.1%}")


def show(values: list[float]) -> str:
    return " ".join(f"{100 * value:.1f}" for value in values) + " %"


if __name__ == "__main__":
    main()
