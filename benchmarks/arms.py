"""Self-training by search against what else the same warm start could have been given.

    python -m benchmarks.arms --seeds 3     # the quickstart against its control
    python -m benchmarks.arms --config configs/smollm2_gsm.py \\
        --arms search demonstrations sample reference --test

Runs whatever is not on disk yet in runs/arms/<config>/<arm>_<seed>, then prints the table; with
--test also that of the last policies on the test split, scored into runs/arms/<config>/test. The
arms share iteration 0, the warm start:

    search          the plain command
    demonstrations  the policy is fitted to D_S0 instead, by as many updates as `search` made on its
                    own traces
    sample          traces are sampled one by one instead of searched for, for as many generated
                    tokens; as many updates as its own traces ask for. ReST-EM, but that every fit
                    goes on from the policy before it
    reference       the policy is fitted to the dataset's own solutions of the problems that search
                    drew, by as many updates as `updates.policy` makes of so many rows: what right
                    traces of all problems would give. Nothing of iteration 0 is among them, and
                    none is dropped. For reasoning_gym alone
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from jaxtrain import files, prompts
from jaxtrain.build import build
from jaxtrain.checkpoints import Checkpoints, about_checkpoint, fingerprint
from jaxtrain.errors import UserError
from jaxtrain.files import read_json
from jaxtrain.flags import parse
from jaxtrain.intervals import mean_interval
from jaxtrain.learning import fit
from jaxtrain.metrics import MetricsLog
from jaxtrain.phases import Run, encode, encode_demonstrations, score
from jaxtrain.progress import Progress
from jaxtrain.runs import list_facts, open_model
from jaxtrain.structs import Kind
from jaxtrain.tasks import Demonstration, make_task
from jaxtrain.tasks.reasoning_gym import ReasoningGymTask
from jaxtrain.trees import TreeFiles
from jaxtrain.workdir import open_workdir

ARMS = ("search", "demonstrations", "sample", "reference")


def fork(flags: list[str], source: Path, folder: Path) -> None:
    """Make a run folder that stands where `source` stood after iteration 0.

    One that began there already stays.
    """
    if (folder / "checkpoints" / "0").exists():
        if fingerprint(folder / "checkpoints", 0) != fingerprint(source / "checkpoints", 0):
            sys.exit(f"{folder}: began from another warm start than {source}; remove it")
        return
    config, model = open_model(parse(["arms", *flags])[0])
    task = make_task(config.tasks, model.tokenizer if model else None)
    with open_workdir(folder, asdict(config), list_facts(config, task, model)) as workdir:
        rows = [
            line for line in (source / "metrics.jsonl").open() if json.loads(line)["iteration"] == 0
        ]
        (folder / "metrics.jsonl").write_text("".join(rows))
        shutil.copy(source / "report.html", workdir.report)
        trees = TreeFiles(source, read_json(source / "manifest.json")["run_key"], "")
        adopt_trees(trees, workdir.trees, 0, config.labels.kind)
        adopt_checkpoint(source, folder, 0, workdir.run_key)


def adopt_trees(source: TreeFiles, to: TreeFiles, iteration: int, kind: str) -> None:
    """Copy the training trees of an iteration, and their labels of a kind, from another run."""
    for place in (place for place in source.training() if place.iteration == iteration):
        if (tree := source.load(place)) is not None:
            to.save(place, tree)
            if (labels := source.load_labels(place, tree, kind)) is not None:
                to.save_labels(place, tree, labels, kind)


def adopt_checkpoint(source: Path, folder: Path, iteration: int, run_key: str) -> None:
    """Copy a checkpoint of the run folder `source` into `folder`, that of another run."""
    place = folder / "checkpoints" / str(iteration)
    temporary = place.with_name(place.name + files.TEMPORARY)
    shutil.copytree(source / "checkpoints" / str(iteration), temporary, dirs_exist_ok=True)
    files.seal(temporary, about_checkpoint(run_key) | {"number": iteration})
    files.rename(temporary, place)


def run_shown(arm: str, flags: list[str], source: Path, folder: Path) -> None:
    """Fit the policy to given solutions and score it, in every iteration not on disk yet."""
    config, model = open_model(parse(["arms", *flags])[0])
    task = make_task(config.tasks, model.tokenizer if model else None)
    with (
        open_workdir(folder, asdict(config), list_facts(config, task, model)) as workdir,
        Progress(config.loop.num_iterations) as progress,
        Checkpoints(workdir.checkpoints, config.checkpoints, workdir.run_key) as checkpoints,
        MetricsLog(folder) as log,
    ):
        fns = build(config, task.tokenizer, progress, model, commuting=task.commuting)
        run = Run(config, task, fns, workdir, log, progress, checkpoints)
        newest = checkpoints.choose(None)
        state = checkpoints.restore(newest, fns.abstract_state, fns.init_base())
        if not log.truncate(int(state.iteration)):
            score(run, int(state.iteration), state.networks)
        for i in range(int(state.iteration) + 1, config.loop.num_iterations + 1):
            how, shown = (
                config.updates.policy,
                solutions(run, i) if arm == "reference" else task.demonstrations,
            )
            if arm == "demonstrations":
                as_many = merge(source)[i]["updates/policy/num_updates"]
                how = replace(how, fit=replace(how.fit, num_updates=as_many, max_epochs=None))
            rows, num_too_long = encode_demonstrations(run, shown)
            progress.note(
                f"iteration {i}: fitted to {len(shown) - num_too_long} solutions, {num_too_long} "
                "too long"
            )
            run_i = replace(
                run, config=replace(config, updates=replace(config.updates, policy=how))
            )
            policy = fit(run_i, i, "policy", state.base, state.policy, rows, True)
            state = replace(state, iteration=np.asarray(i, np.int32), policy=policy)
            checkpoints.save(state)
            workdir.remove_fits(i)
            score(run, i, state.networks)
            checkpoints.prune()


def solutions(run: Run, iteration: int) -> list[Demonstration]:
    """Look up the solutions of what iterations 1 to `iteration` draw, if their prompts fit."""
    c, task = run.config, run.task
    assert isinstance(task, ReasoningGymTask)
    drawn = [
        p
        for i in range(1, iteration + 1)
        for p in prompts.draw(task.train, c.prompts.num_problems, c.seed, i)
    ]
    batches, _ = encode(run, drawn)
    return [
        task.solution(run.task.problems[int(i)])
        for batch in batches
        for i in batch.problem_id
        if i >= 0
    ]


def equal_samples(source: Path) -> int:
    """Count the samples a problem that cost as many tokens as search generated in iteration 1."""
    merged = merge(source)[1]
    folder = source / "trees" / "0"
    paths = sorted(folder.glob("sample-*.npz")) or sorted(folder.glob("greedy-*.npz"))
    trees = [np.load(path) for path in paths]
    is_first = [
        (t["parent"] == -1) & (t["kind"] != Kind.EMPTY) & (t["problem_id"] >= 0)[:, None]
        for t in trees
    ]
    num_samples = sum(int(rows.sum()) for rows in is_first)
    num_tokens = sum(int(t["length"][t["problem_id"] >= 0].sum()) for t in trees)
    return max(
        1,
        round(
            merged["search/sampled_tokens"]
            / merged["labels/num_trees"]
            / (num_tokens / num_samples)
        ),
    )


def merge(folder: Path) -> dict[int, dict]:
    """Read all metrics of a run folder, by iteration."""
    merged: dict[int, dict] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        merged.setdefault(row["iteration"], {}).update(row)
    return merged


def run_arm(arm: str, flags: list[str], root: Path, seed: int) -> dict[int, dict]:
    """Run one arm to its end, or take what is there. Returns its metrics by iteration."""
    source, folder = root / f"search_{seed}", root / f"{arm}_{seed}"
    if arm == "sample":
        flags = [
            *flags,
            "--config.search.method=sample",
            f"--config.search.num_samples={equal_samples(source)}",
        ]
    if arm != "search":
        apart(fork, flags, source, folder)
    if arm in ("demonstrations", "reference"):
        apart(run_shown, arm, flags, source, folder)
    else:
        subprocess.run(
            [sys.executable, "-m", "jaxtrain.main", *flags, "--workdir", str(folder)], check=True
        )
    return merge(folder)


def apart(fn: Callable, *args) -> None:
    """Call in a process of its own: one that has used a GPU keeps its memory until it ends."""
    child = multiprocessing.get_context("spawn").Process(target=fn, args=args)
    child.start()
    child.join()
    if child.exitcode:
        sys.exit(child.exitcode)


def run_test(arm: str, iteration: int, root: Path, seed: int) -> dict[int, dict]:
    """Score one checkpoint of an arm greedily on the test split, or take what is there.

    Returns its metrics.
    """
    to = root / "test" / f"{arm}_{seed}_{iteration}"
    which = [
        "--workdir",
        str(root / f"{arm}_{seed}"),
        "--iteration",
        str(iteration),
        "--to",
        str(to),
    ]
    how = ["--config.evaluation.split=test", "--config.evaluation.strategies=greedy"]
    subprocess.run([sys.executable, "-m", "jaxtrain.evaluate", *which, *how], check=True)
    return merge(to)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=ARMS[:2], help="search always runs, and first"
    )
    parser.add_argument(
        "--test", action="store_true", help="also score what came of it on the test split"
    )
    parser.add_argument("--root", type=Path, default=Path("runs/arms"))
    options, overrides = parser.parse_known_args()
    try:
        config = parse(["arms", "--config", options.config, *overrides])[0]
    except UserError as error:
        sys.exit(str(error))
    if "reference" in options.arms and config.tasks.name != "reasoning_gym":
        sys.exit(
            f"--arms reference: --config.tasks.name={config.tasks.name} keeps no solutions; "
            "reasoning_gym does"
        )
    root = options.root / Path(options.config.split(":")[0]).stem
    arms = [arm for arm in ARMS if arm == "search" or arm in options.arms]
    found: dict[str, list[dict[int, dict]]] = {arm: [] for arm in arms}
    for seed in range(options.seeds):
        flags = ["--config", options.config, f"--config.seed={seed}", *overrides]
        for arm in arms:
            found[arm].append(run_arm(arm, flags, root, seed))
            print(f"seed {seed}, {arm}: {show(found[arm][-1])}", flush=True)
    tell("", found, found["search"])
    if options.test:
        runs = {arm: list(enumerate(found[arm])) for arm in arms}
        warm = [run_test("search", 0, root, seed) for seed, _ in runs["search"]]
        tell(
            "test: ",
            {arm: [run_test(arm, max(run), root, seed) for seed, run in runs[arm]] for arm in arms},
            warm,
        )


def tell(where: str, found: dict[str, list[dict[int, dict]]], warm: list[dict[int, dict]]) -> None:
    """Print how far search stands above its warm start (`warm` at iteration 0) and other arms."""
    for name, theirs in {"its warm start": [{0: run[0]} for run in warm], **found}.items():
        if name != "search":
            print(f"{where}search, above {name}: {difference(theirs, found['search'])}")


def show(run: dict[int, dict]) -> str:
    """Greedy accuracy of every iteration in %, and the tokens generated after the warm start."""
    accuracies = " ".join(f"{100 * run[i]['evaluation/greedy/accuracy']:.1f}" for i in sorted(run))
    tokens = sum(run[i].get("search/sampled_tokens", 0) for i in run if i)
    return f"greedy {accuracies} %, {tokens:,} tokens generated"


def difference(theirs: list[dict[int, dict]], ours: list[dict[int, dict]]) -> str:
    """Mean difference of greedy accuracy at the end, paired by problem, and that of every seed.

    The interval is bootstrapped over problems, which all seeds share: what other seeds would give,
    it does not say.
    """
    key = "evaluation/greedy/outcomes"
    rows = [
        np.subtract(mine[max(mine)][key], other[max(other)][key])
        for mine, other in zip(ours, theirs, strict=True)
    ]
    pairs = np.stack(rows).astype(float)  # [seeds problems]
    low, high = mean_interval(pairs.mean(axis=0), np.arange(pairs.shape[1]))
    each = " ".join(f"{100 * pair.mean():+.1f}" for pair in pairs)
    return f"{100 * pairs.mean():+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] (each {each})"


if __name__ == "__main__":
    main()
