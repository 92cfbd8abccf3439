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
                    tokens as search in the same iteration; as many updates as its own traces ask
                    for. ReST-EM, but that every fit goes on from the policy before it
    reference       the policy is fitted to the dataset's own solutions of the problems that search
                    drew, by as many updates as `updates.policy` makes of so many rows: what right
                    traces of all problems would give. Nothing of iteration 0 is among them, and
                    none is dropped. For reasoning_gym alone
    independent     the plain command, with trees of steps drawn with repeats. Like the next one an
                    ablation of the quickstart's search, at about as many generated tokens
    unlikely        the plain command, with trees that hold what the policy would hardly write
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.labels import count
from jaxtrain import files, prompts
from jaxtrain.build import build
from jaxtrain.checkpoints import Checkpoints, about_checkpoint, fingerprint
from jaxtrain.errors import UserError
from jaxtrain.files import read_json
from jaxtrain.flags import parse
from jaxtrain.intervals import mean_interval
from jaxtrain.iteration import iterate
from jaxtrain.learning import fit
from jaxtrain.metrics import MetricsLog
from jaxtrain.phases import Run, encode, encode_demonstrations, score
from jaxtrain.progress import Progress
from jaxtrain.runs import list_facts, open_model
from jaxtrain.structs import Kind, State
from jaxtrain.tasks import Demonstration, make_task
from jaxtrain.tasks.reasoning_gym import ReasoningGymTask
from jaxtrain.trees import TreeFiles
from jaxtrain.workdir import open_workdir

# searches that lack a part; they end when a tree has cost what the quickstart's do with it, which
# is on average half an expansion more than `num_tokens`
ABLATIONS = {
    "independent": {"candidates": "independent", "num_candidates": 12, "num_simulations": 13},
    "unlikely": {"top_p": 1.0},
}
ABLATED_TOKENS = 600
ARMS = ("search", "demonstrations", "sample", "reference", *ABLATIONS)
# outcomes by problem, or one figure a run
MEASURES = (
    *(f"evaluation/{name}/outcomes" for name in ("greedy", "best_of_k", "search", "pass_at_k")),
    "evaluation/prm/samples/auroc_within",
)


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


# (run, state, the run folder of `search`) -> the next state
TurnFn = Callable[[Run, State, Path], State]


def run_own(turn_fn: TurnFn, flags: list[str], source: Path, folder: Path) -> None:
    """Turn the loop in a way of our own, in every iteration that is not on disk yet, and score."""
    config, model = open_model(parse(["arms", *flags])[0])
    task = make_task(config.tasks, model.tokenizer if model else None)
    with (
        open_workdir(folder, asdict(config), list_facts(config, task, model)) as workdir,
        Progress(config.loop.num_iterations) as progress,
        Checkpoints(workdir.checkpoints, config.checkpoints, workdir.run_key) as checkpoints,
        MetricsLog(folder) as log,
    ):
        fns = build(config, task, progress, model)
        run = Run(config, task, fns, workdir, log, progress, checkpoints)
        newest = checkpoints.choose(None)
        state = checkpoints.restore(newest, fns.abstract_state, fns.init_base())
        if not log.truncate(int(state.iteration)):
            score(run, int(state.iteration), state.networks)
        while int(state.iteration) < config.loop.num_iterations:
            state = turn_fn(run, state, source)
            checkpoints.save(state)
            workdir.remove_fits(int(state.iteration))
            score(run, int(state.iteration), state.networks)
            checkpoints.prune()


def fit_shown(run: Run, state: State, source: Path, is_reference: bool) -> State:
    """Fit the policy to given solutions instead of traces."""
    i, how, shown = int(state.iteration) + 1, run.config.updates.policy, run.task.demonstrations
    if is_reference:
        shown = solutions(run, i)
    else:
        as_many = merge(source)[i]["updates/policy/num_updates"]
        how = replace(how, fit=replace(how.fit, num_updates=as_many, max_epochs=None))
    rows, num_too_long = encode_demonstrations(run, shown)
    told = f"fitted to {len(shown) - num_too_long} solutions, {num_too_long} too long"
    run.progress.note(f"iteration {i}: {told}")
    config = replace(run.config, updates=replace(run.config.updates, policy=how))
    policy = fit(replace(run, config=config), i, "policy", state.base, state.policy, rows, True)
    return replace(state, iteration=np.asarray(i, np.int32), policy=policy)


def iterate_sampled(run: Run, state: State, source: Path) -> State:
    """Turn the loop with as many samples a problem as cost the tokens that `search` generated."""
    i = int(state.iteration) + 1
    num_samples = equal_samples(source, run.workdir.path if i > 1 else source, i)
    run.progress.note(f"iteration {i}: {num_samples} samples a problem")
    search = replace(run.config.search, num_samples=num_samples)
    config = replace(run.config, search=search)
    fns = build(config, run.task, run.progress)
    return iterate(state, replace(run, config=config, fns=fns))


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


def equal_samples(source: Path, folder: Path, iteration: int) -> int:
    """Count the samples a problem that cost what the search of run `source` generated in an
    iteration: as long as those that `folder` was scored by in the iteration before.
    """
    merged = merge(source)[iteration]
    scored = folder / "trees" / str(iteration - 1)
    paths = sorted(scored.glob("sample-*.npz")) or sorted(scored.glob("greedy-*.npz"))
    trees = [np.load(path) for path in paths]
    is_first = [
        (t["parent"] == -1) & (t["kind"] != Kind.EMPTY) & (t["problem_id"] >= 0)[:, None]
        for t in trees
    ]
    num_samples = sum(int(rows.sum()) for rows in is_first)
    num_tokens = sum(int(t["length"][t["problem_id"] >= 0].sum()) for t in trees)
    asked = merged["search/sampled_tokens"] / merged["labels/num_trees"]
    return max(1, round(asked * num_samples / num_tokens))


def merge(folder: Path) -> dict[int, dict]:
    """Read all metrics of a run folder, by iteration."""
    merged: dict[int, dict] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        merged.setdefault(row["iteration"], {}).update(row)
    return merged


# how the arms that are no plain command turn the loop
TURNS: dict[str, TurnFn] = {
    "demonstrations": partial(fit_shown, is_reference=False),
    "reference": partial(fit_shown, is_reference=True),
    "sample": iterate_sampled,
}


def run_arm(arm: str, flags: list[str], root: Path, seed: int) -> dict[int, dict]:
    """Run one arm to its end, or take what is there. Returns its metrics by iteration."""
    source, folder = root / f"search_{seed}", root / f"{arm}_{seed}"
    if arm in ABLATIONS:
        changed = {**ABLATIONS[arm], "num_tokens": ABLATED_TOKENS}
        flags = [*flags, *(f"--config.search.{key}={value}" for key, value in changed.items())]
        apart(fork, flags, source, folder)
    if arm == "search" or arm in ABLATIONS:
        command = [sys.executable, "-m", "jaxtrain.main", *flags, "--workdir", str(folder)]
        subprocess.run(command, check=True)
        return merge(folder)
    if arm == "sample":
        flags = [*flags, "--config.search.method=sample"]
    apart(fork, flags, source, folder)
    apart(run_own, TURNS[arm], flags, source, folder)
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
    parser.add_argument("--seeds", type=count, default=1)
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
        if name == "search":
            continue
        print(f"{where}search, above {name}, in points:")
        print(
            "| | mean | over problems | over seeds | each seed |\n| --- | --- | --- | --- | --- |"
        )
        for row in compare(theirs, found["search"]):
            print(row)


def show(run: dict[int, dict]) -> str:
    """Greedy accuracy of every iteration in %, and the tokens generated after the warm start."""
    accuracies = " ".join(f"{100 * run[i]['evaluation/greedy/accuracy']:.1f}" for i in sorted(run))
    tokens = sum(run[i].get("search/sampled_tokens", 0) for i in run if i)
    return f"greedy {accuracies} %, {tokens:,} tokens generated"


def compare(theirs: list[dict[int, dict]], ours: list[dict[int, dict]]) -> Iterator[str]:
    """Tell the mean differences at the end and those of every seed, a row for every measure.

    Over problems, which all seeds share, an interval is bootstrapped in pairs; over seeds it is
    Student's. Either says nothing of the other.
    """
    last = [(mine[max(mine)], other[max(other)]) for mine, other in zip(ours, theirs, strict=True)]
    for key in MEASURES:
        if not all(key in row for pair in last for row in pair):
            continue
        pairs = [np.subtract(mine[key], other[key], dtype=float) for mine, other in last]
        each = 100 * np.array([pair.mean() for pair in pairs])
        over_problems = ""
        if pairs[0].ndim:
            by_problem = 100 * np.mean(pairs, axis=0)
            over_problems = span(*mean_interval(by_problem, np.arange(len(by_problem))))
        over_seeds = (
            span(*stats.t.interval(0.95, len(each) - 1, each.mean(), stats.sem(each)))
            if len(each) > 1
            else ""
        )
        cells = (
            f"{each.mean():+.1f}",
            over_problems,
            over_seeds,
            " ".join(map("{:+.1f}".format, each)),
        )
        name = key.removeprefix("evaluation/").removesuffix("/outcomes")
        yield f"| {name} | {' | '.join(cells)} |"


def span(low: float, high: float) -> str:
    """Write an interval."""
    return f"[{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
