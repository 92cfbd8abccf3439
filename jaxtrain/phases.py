"""A stage as it is run, with files, progress and log. Stands between compiled functions and loop.

What is pure stays in the stages. Here trees are grown or loaded, judged and stored; a checkpoint is
scored; and what cannot go on says so. Fits are made in `learning.py`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from itertools import cycle
from typing import NamedTuple

import jax
import numpy as np

from jaxtrain import datasets, evaluation, labels, prompts
from jaxtrain.build import Functions
from jaxtrain.checkpoints import Checkpoints
from jaxtrain.config import Config
from jaxtrain.errors import Diverged, require
from jaxtrain.evaluation import named
from jaxtrain.files import write_atomic, write_json
from jaxtrain.keys import Purpose
from jaxtrain.metrics import MetricsLog
from jaxtrain.progress import Phase, Progress
from jaxtrain.report import TreeData, render_report
from jaxtrain.report.samples import read_cards
from jaxtrain.report.scores import tell_accuracy
from jaxtrain.report.tree import pick, read_tree
from jaxtrain.search.rows import rank
from jaxtrain.search.work import born
from jaxtrain.structs import CheckFn, Examples, Networks, Prompts, Shard, Tree, Verdict
from jaxtrain.tasks import Demonstration, Task
from jaxtrain.tasks.base import make_check
from jaxtrain.trees import Damaged, Place, Stored, search_totals
from jaxtrain.workdir import Workdir

# the draws and file names of trees, by what grows them; all but the first two answer
GROWN = {
    "train": Purpose.SEARCH,
    "hinted": Purpose.HINT,
    "greedy": Purpose.GREEDY,
    "samples": Purpose.SAMPLE,
    "search": Purpose.SOLVE,
}
Job = tuple[str, int, Prompts]  # a key of GROWN, the number of a batch, the batch
NetworksFn = Callable[[], Networks]  # asked only where there is something to grow


@dataclass(frozen=True)
class Run:
    """What the loop works with besides its State."""

    config: Config
    task: Task
    fns: Functions
    workdir: Workdir
    log: MetricsLog
    progress: Progress
    checkpoints: Checkpoints

    @cached_property
    def check(self) -> CheckFn | None:
        """What counts the false steps of a path; None where the task has no check."""
        return make_check(self.task, self.config.trace)


class Begun(NamedTuple):
    """A batch whose trees were read, or are with the device, which may be at work on them."""

    place: Place
    batch: Prompts
    tree: Tree
    is_restored: bool


def encode(run: Run, problems: Sequence[prompts.Problem]) -> tuple[list[Prompts], int]:
    """Encode problems into batches. Returns them and the number of prompts over the limit."""
    c, task = run.config.prompts, run.task
    # demonstrations serve as shots, where the style asks for them
    encode_fn = prompts.make_encode(c, task.tokenizer, task.demonstrations)
    return prompts.encode(problems, encode_fn, c.max_prompt_tokens, c.batch_size)


def encode_demonstrations(run: Run, shown: Sequence[Demonstration]) -> tuple[Examples, int]:
    """Encode demonstrations. Returns the policy's examples and the number of those too long."""
    tokenizer = run.task.tokenizer
    encode_fn = prompts.make_encode(run.config.prompts, tokenizer, run.task.demonstrations)
    pairs = [(encode_fn(d), [*tokenizer.encode(d.response), tokenizer.end_id]) for d in shown]
    return datasets.demonstrations(pairs, run.config.max_length)


def draw(run: Run, i: int) -> tuple[list[Prompts], int]:
    """Draw and encode the problems of iteration i, the same ones whenever it is asked."""
    c = run.config.prompts
    num_problems = c.num_problems if i else c.num_first_problems
    return encode(run, prompts.draw(run.task.train, num_problems, run.config.seed, i))


def grow(run: Run, i: int, batches: Sequence[Prompts], networks: Networks) -> list[Shard]:
    """Grow, judge and label an iteration's trees, batch by batch."""
    shards, totals = [], Counter()
    with run.progress.phase("search", iteration=i, total=num_problems(batches)) as phase:
        for shard, is_restored in make_shards(run, i, jobs(batches), lambda: networks):
            shards.append(shard)
            totals.update(tally(phase, shard, is_restored))
    # what there is to tell of them
    require_some_ok(run, i, totals)
    searched = search_totals([shard.tree for shard in shards])
    metrics = named("search", searched) | named("labels", totals)
    run.log.append(i, {**metrics, "time/search": phase.seconds})
    return shards + (grow_hinted(run, i, shards, networks) if has_hints(run, i) else [])


def has_hints(run: Run, i: int) -> bool:
    """Say whether unsolved problems are asked again: not in the warm start, which learns none."""
    return i > 0 and run.config.prompts.num_hinted > 0


def grow_hinted(run: Run, i: int, shards: Sequence[Shard], networks: Networks) -> list[Shard]:
    """Sample traces of the problems that no tree of an iteration solved, with hints (STaR)."""
    batches, num_too_long = encode_hinted(run, shards)
    found, totals = [], Counter()
    with run.progress.phase("hints", iteration=i, total=num_problems(batches)) as phase:
        for shard, is_restored in make_hinted(run, i, batches, lambda: networks):
            found.append(shard)
            totals.update(tally(phase, shard, is_restored))
    told = {key: totals[key] for key in ("num_trees", "num_trees_solved", "num_correct")}
    told["sampled_tokens"] = int(sum(shard.tree.length.sum() for shard in found))
    metrics = named("hints", {"num_too_long": num_too_long, **told})
    run.log.append(i, {**metrics, "time/hints": phase.seconds})
    return found


def encode_hinted(run: Run, shards: Sequence[Shard]) -> tuple[list[Prompts], int]:
    """Encode the problems of trees that hold no correct answer, with their hints, as `encode`."""
    is_solved = [(shard.labels.verdict == Verdict.CORRECT).any(axis=1) for shard in shards]
    asked = [shard.tree.problem_id[~done] for shard, done in zip(shards, is_solved, strict=True)]
    problems = [run.task.problems[int(id)] for ids in asked for id in ids if id >= 0]
    return encode(run, [prompts.hinted(problem, run.config.prompts.hint) for problem in problems])


def make_hinted(
    run: Run, i: int, batches: Sequence[Prompts], networks_fn: NetworksFn
) -> Iterator[tuple[Shard, bool]]:
    """Make the shards of hinted prompts as `make_shards` does, as if nothing had been said: their
    prompts are those without hints, and nothing is labelled, since the PRM is to know no text that
    no policy writes.
    """
    made = make_shards(run, i, jobs(batches, "hinted"), networks_fn)
    for (batch, tree, judged), is_restored in made:
        asked = [run.task.problems[int(id)] for id in batch.problem_id if id >= 0]
        (plain,), _ = encode(run, asked)
        judged = replace(judged, is_labelled=np.zeros_like(judged.is_labelled))
        yield Shard(plain, tree, judged), is_restored


def earlier_rounds(run: Run, i: int) -> dict[int, list[Shard]]:
    """Read the labelled trees of the iterations before i that are still learnt from."""
    # as far back as either dataset reaches
    first = max(0, i - datasets.num_rounds(run.config.datasets) + 1)
    return {j: read_round(run, j) for j in range(first, i)}


def read_round(run: Run, i: int) -> list[Shard]:
    """Read the trees of an iteration that is over; what is lost is grown again (or UserError)."""
    networks_fn = cache(partial(networks_before, run, i))
    batches, _ = draw(run, i)
    shards = [shard for shard, _ in make_shards(run, i, jobs(batches), networks_fn)]
    if not has_hints(run, i):
        return shards
    hinted = make_hinted(run, i, encode_hinted(run, shards)[0], networks_fn)
    return shards + [shard for shard, _ in hinted]


def jobs(batches: Sequence[Prompts], *names: str) -> list[Job]:
    """List what is to be grown: every batch by the search that learns, or by each of the others."""
    return [(name, k, batch) for name in names or ("train",) for k, batch in enumerate(batches)]


def make_shards(
    run: Run, i: int, asked: Sequence[Job], networks_fn: NetworksFn
) -> Iterator[tuple[Shard, bool]]:
    """Read the trees of iteration i and their labels, or grow, judge and store them, in order.

    Yields (host arrays, whether the trees lay on disk already). The device is given the next batch
    before the host waits for this one, and holds the trees of two batches at most.
    """
    # A CPU does in turn what one thread asks for, and side by side what two ask for.
    threads = cycle([ThreadPoolExecutor(1) for _ in range(1 + run.config.loop.overlap_searches)])
    ahead: Begun | None = None
    for job in asked:
        now, ahead = ahead, None
        try:
            ahead = begin(run, i, job, networks_fn, next(threads))
        finally:  # what cannot be begun takes nothing with it that was
            if now is not None:
                yield finish(run, now)
    if ahead is not None:
        yield finish(run, ahead)


def begin(run: Run, i: int, job: Job, networks_fn: NetworksFn, thread: Executor) -> Begun:
    """Read the trees of a batch, or let the device grow them and do not wait for it."""
    name, k, batch = job
    purpose = GROWN[name]
    place = Place(i, k, purpose.name.lower())
    tree = unless_damaged(run, partial(run.workdir.trees.load, place))
    if tree is not None:
        return Begun(place, batch, tree, True)
    keys = run.fns.problem_keys(i, int(purpose), batch.problem_id)
    temperature = np.float32(run.config.searches[name].temperature)
    grow_fn = partial(run.fns.grow[name], *networks_fn(), batch, keys, temperature)
    return Begun(place, batch, thread.submit(grow_fn).result(), False)


def finish(run: Run, begun: Begun) -> tuple[Shard, bool]:
    """Fetch, judge and store the trees of a batch; what lies on disk of them is read."""
    place, batch, tree, is_restored = begun
    stored, c = run.workdir.trees, run.config.labels
    if not is_restored:
        tree = jax.device_get(tree)
        stored.save(place, tree)

    # what they are worth
    labelled = unless_damaged(run, partial(stored.load_labels, place, tree, c.kind))
    if labelled is None:
        labelled = labels.label(tree, labels.judge(tree, run.task.verify_tokens), c)
        stored.save_labels(place, tree, labelled, c.kind)
    return Shard(batch, tree, labelled), is_restored


def networks_before(run: Run, i: int) -> Networks:
    """Restore the networks that grew the trees of iteration i. Raises UserError."""
    before, abstract, base = max(i - 1, 0), run.fns.abstract_state, run.fns.init_base()
    fault = run.checkpoints.fault(before)
    told = f"trees of iteration {i} are still learnt from, and some are gone or damaged; they could"
    told = f"{told} be grown again with checkpoint {before}, but {fault}; restore one or the other"
    require(not fault, run.workdir.path, f"{told} from a copy")
    if i == 0:  # its trees were grown before the PRM's first fit
        policy = run.checkpoints.restore_params(before, "policy", abstract)
        return Networks(base, policy, run.fns.init_prm(policy).params)
    return run.checkpoints.restore_networks(before, abstract, base)


def require_some_ok(run: Run, i: int, totals: Counter[str]) -> None:
    """Raise Diverged where every tree was set aside: a network holds what overflows, or NaN."""
    if totals["num_set_aside"] == totals["num_trees"] > 0:
        why = "were set aside, since logits or scores were not finite"
        raise diverged(run, i, f"all {totals['num_trees']} trees {why}")


def diverged(run: Run, i: int, what: str) -> Diverged:
    """Say what went wrong in iteration i, and how to go on."""
    learners, part = run.config.updates, "fit" if i else "warm_start"
    told = " and ".join(
        f"--config.updates.{name}.{part}.learning_rate={learner.fit_of(i).learning_rate}"
        for name, learner in (("policy", learners.policy), ("prm", learners.prm))
    )
    return Diverged(
        f"iteration {i}: {what}; the earlier checkpoints of {run.workdir.path} are as they were; "
        f"begin in another --workdir with rates below {told}, or with other weights"
    )


def unless_damaged(run: Run, load_fn: Callable[[], Stored | None]) -> Stored | None:
    """Return what is on disk; None, and a note, where it is set aside."""
    try:
        return load_fn()
    except Damaged as damage:
        run.progress.note(str(damage))
        return None


def score(run: Run, i: int, networks: Networks, fit_log: MetricsLog | None = None) -> None:
    """Measure an iteration on held-out problems, log it as one event, and write the report.

    fit_log: of the run that fitted the networks, where that is another one.
    """
    c = run.config.evaluation
    batches, num_too_long = held_out(run)
    total = len(c.searches) * num_problems(batches)
    # The trees that the strategies read, and what they make of them.
    with run.progress.phase("evaluation", iteration=i, total=total) as phase:
        joined, counts = solve(run, i, batches, networks, phase)
        baseline = read_baseline(fit_log or run.log, i)
        costs = {k: s.check_weight for k, s in c.searches.items() if s.checks == "penalty"}
        answers, rank_fn = run.task.answer_tokens, partial(rank, c.samples.prior)
        metrics = evaluation.measure(
            joined, c.strategies, baseline, answers, rank_fn, run.check, costs
        )

    # What was left out is told, and what failed, which counts as wrong.
    told = {"split": c.split, "num_too_long": num_too_long, **counts}
    metrics |= named("evaluation", told)
    metrics["time/evaluation"] = phase.seconds
    # of the whole iteration: its evaluation is its last event
    metrics["time/compile"] = run.progress.take_compile_seconds()
    metrics["time/checkpoint"] = run.checkpoints.save_seconds
    metrics |= {"evaluation/has_calculator": 1} if run.config.trace.calculator else {}
    # A few traces to read, and one tree to look into.
    kinds = [name for name in ("search", "greedy") if name in joined]
    samples = [card for name in kinds for card in read_cards(run.task, joined[name], name)]
    tree = read_telling(run, i, joined) if "search" in joined else None

    # The report first: a kill in between scores the iteration again, and writes it again.
    shown = {"samples": samples, "tree": tree}
    write_json(run.workdir.path / "samples.json", shown)
    rows = [*run.log.read(), {"iteration": i, **metrics}]
    page = render_report(asdict(run.config), rows, manifest=run.workdir.manifest, **shown)
    write_atomic(run.workdir.report, page.encode())
    run.log.append(i, metrics)
    run.progress.note(tell_accuracy(rows[-1]))


def read_telling(run: Run, i: int, joined: dict[str, Shard]) -> TreeData:
    """Read the tree of an evaluation's search that tells most."""
    b, (_, tree, judged) = pick({k: shard[1:] for k, shard in joined.items()}), joined["search"]
    problem, c = run.task.problems[int(tree.problem_id[b])], run.config
    when = born(c.evaluation.search, c.trace.max_steps)
    facts = f"iteration {i}", c.evaluation.search.method
    return read_tree(tree, b, judged, run.task.tokenizer.decode, problem, when, facts)


def held_out(run: Run) -> tuple[list[Prompts], int]:
    """Encode the first problems of the split, the same ones every time, as `encode` does."""
    c = run.config.evaluation
    return encode(run, getattr(run.task, c.split)[: c.num_problems])


def solve(
    run: Run, i: int, batches: Sequence[Prompts], networks: Networks, phase: Phase
) -> tuple[dict[str, Shard], dict[str, int]]:
    """Grow and judge the trees that the strategies of an evaluation read.

    Returns (the trees of all batches, by their kind; counts of what failed). Raises Diverged.
    """
    found: dict[str, list[Shard]] = {name: [] for name in run.config.evaluation.searches}
    asked, totals = jobs(batches, *found), Counter()
    made = make_shards(run, i, asked, lambda: networks)
    for (name, _, _), (shard, is_restored) in zip(asked, made, strict=True):
        found[name].append(shard)
        totals.update(tally(phase, shard, is_restored))
    require_some_ok(run, i, totals)
    join = partial(jax.tree.map, lambda *x: np.concatenate(x))
    joined: dict[str, Shard] = {name: join(*shards) for name, shards in found.items()}
    return joined, {key: totals[key] for key in ("num_errors", "num_set_aside")}


def read_baseline(log: MetricsLog, i: int) -> evaluation.Baseline:
    """Read from the log what the PRM's targets were on average, in all and at each depth."""
    # [mean, count] for steps 1, 2, ...
    told = log.newest("datasets/targets_by_depth", i) or []
    num = sum(n for _, n in told)
    constant = sum(mean * n for mean, n in told if n) / num if num else math.nan
    return evaluation.Baseline(constant, np.array([mean if n else constant for mean, n in told]))


def tally(phase: Phase, shard: Shard, is_restored: bool) -> dict[str, int]:
    """Tell the progress what a batch of trees was, and return its counts."""
    tree, counts = shard.tree, labels.counts(shard.tree, shard.labels)
    phase.advance(
        counts["num_trees"],
        tokens=int(tree.policy_tokens.sum() + tree.prm_tokens.sum()),
        lanes=int(tree.length.sum()),
        lane_tokens=int(tree.lane_tokens.sum()),
        solved=counts["num_trees_solved"],
        attempted=counts["num_trees"],
        is_restored=is_restored,
    )
    return counts


def num_problems(batches: Sequence[Prompts]) -> int:
    """Count the problems of batches, padding apart."""
    return sum(int((batch.problem_id >= 0).sum()) for batch in batches)
