"""The command: `python -m jaxtrain.evaluate --workdir W --to DIR [--iteration K]
[--methods A,B --budgets 1k,4k] [--config.section.key=value]`.

Scores one checkpoint of a run on other problems, or with another budget, than the run did: other
templates or files by `--config.tasks...`, another split or more samples by
`--config.evaluation...`. Problems that the run trained on are left out. DIR becomes a run folder of
its own, with config, manifest, trees, metrics and report.html; the same command resumes there.

With --methods and --budgets every method answers the same problems at the same budgets: tokens a
problem of both networks, prompts included. A search is that of `--config.evaluation.search` but for
its method and size. All figures are in DIR/methods.json, the trees below DIR/methods.
"""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any

from jaxtrain import sharding
from jaxtrain.build import build
from jaxtrain.checkpoints import fingerprint
from jaxtrain.commands import Parser, command_line
from jaxtrain.compilation import keep_compiled
from jaxtrain.config import Config, check
from jaxtrain.errors import UserError, require
from jaxtrain.evaluation import STRATEGIES, Answered, budgets, named, read
from jaxtrain.files import read_json, write_atomic, write_json
from jaxtrain.flags import override, read_flags
from jaxtrain.metrics import MetricsLog
from jaxtrain.phases import Run, held_out, num_problems, score, solve
from jaxtrain.plan import FORWARD, num_read, rows_at_once
from jaxtrain.progress import Progress
from jaxtrain.report import methods as tables
from jaxtrain.report import render_report
from jaxtrain.runs import list_facts, open_run, summary
from jaxtrain.search.config import RULES, SearchConfig
from jaxtrain.search.rows import rank
from jaxtrain.search.work import sized, work_of
from jaxtrain.structs import Networks, Prompts, Shard
from jaxtrain.tasks import Task, make_task
from jaxtrain.workdir import open_workdir, run_key

# sections that may differ from the run's
FREE = ("seed", "tasks", "prompts", "trace", "search", "evaluation", "sharding", "compilation")
NUM_PILOT = 4  # samples of a problem that tell how long steps and traces are


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Score one checkpoint and write the report. Raises UserError."""
    parser = Parser(__doc__, to="the folder for what is found")
    parser.add_argument("--methods", help="what is compared: strategies, and methods of search")
    parser.add_argument("--budgets", help="tokens of both networks a problem, such as 1k,4k,16k")
    options, overrides = parser.parse_known_args(arguments)
    for flag in overrides:
        if flag.startswith("-") and not flag.startswith("--config."):
            parser.error(f"{flag} is unknown")
    if (options.methods is None) != (options.budgets is None):
        raise UserError("--methods and --budgets go together: every method answers at each budget")
    compared = options.methods is not None and (
        budgets.read_methods(options.methods, RULES),
        budgets.read_budgets(options.budgets),
    )
    ran = open_run(options.workdir)
    config, learnt = change(ran.config, overrides), ran.task
    is_own = config.tasks == ran.config.tasks
    asked = learnt if is_own else make_task(config.tasks, learnt.tokenizer)
    task, num_learnt = leave_out(learnt, asked, config.evaluation.split)
    # Tokens and shots stay those that the run had.
    task = replace(task, demonstrations=learnt.demonstrations)
    check(config, task)
    told = [keep_compiled(config.compilation)]
    with ran.checkpoints(told.append) as checkpoints:
        iteration = checkpoints.choose(options.iteration)
        facts = list_facts(config, task, ran.pretrained)
        facts |= {
            "evaluated.run_key": ran.manifest["run_key"],
            "evaluated.iteration": iteration,
            "evaluated.checkpoint_sha256": fingerprint(checkpoints.folder, iteration),
        }
        command = command_line("evaluate", arguments)
        with (
            open_workdir(options.to, asdict(config), facts, command) as workdir,
            MetricsLog(workdir.path, config.loop.writers, asdict(config)) as log,
        ):
            progress = leaving.enter_context(Progress(iteration))
            for line in (*told, *workdir.notices):
                progress.note(line)
            # The shapes of a State are the run's; the problems may have others.
            here = replace(ran.config, sharding=config.sharding)
            networks = ran.load(iteration, here, progress=progress).networks
            log.truncate(-1)
            if num_learnt:
                split = config.evaluation.split
                notice = f"{num_learnt} {split} problems are left out: the run trained on them"
                log.append(iteration, {"tasks/num_left_out": num_learnt, "tasks/notice": notice})
                progress.note(notice)
            fns = build(config, task, progress)
            run = Run(config, task, fns, workdir, log, progress, checkpoints)
            lines = []
            if compared:
                lines += tables.lines(compare(run, iteration, networks, *compared))
            else:
                score(run, iteration, networks, MetricsLog(ran.path))
            leaving.close()
    print(*lines, summary(workdir), sep="\n")


def compare(
    run: Run, i: int, networks: Networks, methods: Sequence[str], asked: Sequence[int]
) -> list[dict[str, Any]]:
    """Let every method answer at each budget, and write methods.json and the report.

    Returns the rows of the table. Raises UserError for a budget that is too small.
    """
    c, flops = run.config.evaluation, FORWARD * num_read(run.fns)
    batches, num_too_long = held_out(run)
    trouble, rows = Counter(num_too_long=num_too_long), []
    grown = partial(grow_apart, run, i, networks, batches, trouble)

    # How long traces are, by a few of them; then one set of samples for all budgets.
    pilot, *_ = grown("pilot", "samples", replace(c.samples, num_samples=NUM_PILOT))
    lengths = budgets.lengths(pilot.prompts.length, pilot.tree)
    budgets.require_one_sample(asked[0], lengths, "--budgets", "on average")
    strategies = [STRATEGIES[name] for name in methods if name in STRATEGIES]
    is_free = any(s.trees == "samples" and not s.pays_prm for s in strategies)
    num_samples = lengths.num_samples(asked[-1], 1 if is_free else 2)
    run.progress.note(f"{num_samples} samples a problem pay for {asked[-1]:,} tokens")
    drawing = replace(c.samples, num_samples=num_samples)
    _, samples, sampling = grown(f"samples-{num_samples}", "samples", drawing)

    def searched(method: str, budget: int) -> dict[str, Any]:
        row, before = {}, None
        tokens = wanted = lengths.sampled(budget)
        # What steps cost a search is known when it has run once; then it is sized once more.
        for number in (1, 2):
            search = replace(c.search, method=method)
            search = sized(search, tokens, lengths[1:], run.config.trace.max_steps)
            if search == before:
                break
            shard, told, seconds = grown(f"{method}-{budget}-{number}", "search", search)
            row = budgets.compare(method, told, samples, budget, seconds, flops)
            row["share_early"] = budgets.share_early(shard.tree, search.num_tokens)
            if budgets.is_met(row):
                break
            before, tokens = search, tokens * wanted / lengths.sampled(row["tokens"])
        return row

    # Every method, budget by budget; greedy decoding has none.
    if "greedy" in methods:
        _, greedy, seconds = grown("greedy", "greedy", c.samples)
        rows.append(budgets.compare("greedy", greedy, samples, None, seconds, flops))
    for budget in asked:
        for method in (name for name in methods if name != "greedy"):
            if method in STRATEGIES:
                rows.append(budgets.compare(method, samples, samples, budget, sampling, flops))
            else:
                rows.append(searched(method, budget))

    # The report, and all figures beside it.
    how = {"has_calculator": 1} if run.config.trace.calculator else {}
    rows = [row | how for row in rows]
    run.log.append(i, named("evaluation", {**trouble, **how}))
    page = render_report(asdict(run.config), run.log.read(), [], run.workdir.manifest, rows)
    write_atomic(run.workdir.report, page.encode())
    told = {"iteration": i, "split": c.split, "num_samples": num_samples, "rows": rows}
    write_json(run.workdir.path / "methods.json", told)
    return rows


def grow_apart(
    run: Run,
    i: int,
    networks: Networks,
    batches: list[Prompts],
    trouble: Counter[str],
    name: str,
    kind: str,
    search: SearchConfig,
) -> tuple[Shard, Answered, float]:
    """Grow the trees of one kind in a folder of their own, and count what failed as trouble.

    Returns (the trees, what they answer, seconds a problem of growing and judging).
    """
    # Trees are the same however many grow at once.
    strategy = next(key for key, s in STRATEGIES.items() if s.trees == kind)
    part = "search" if kind == "search" else "samples"
    asked, own = (
        replace(run.config.evaluation, strategies=(strategy,), **{part: c})
        for c in (search, seated(run, batches, search))
    )
    key = run_key(asdict(run.config), run.workdir.manifest["facts"], asdict(asked))
    path, config = run.workdir.path / "methods" / name, replace(run.config, evaluation=own)
    path.mkdir(parents=True, exist_ok=True)
    apart = replace(
        run,
        config=config,
        fns=build(config, run.task, run.progress),
        workdir=replace(run.workdir, path=path, solve_key=key),
    )
    with run.progress.phase(name, iteration=i, total=num_problems(batches)) as phase:
        found, failed = solve(apart, i, batches, networks, phase)
    trouble.update(failed)

    # What an earlier start has grown was timed by it.
    timed, num_grown = path / "seconds.json", phase.done - phase.restored
    if num_grown:
        write_json(timed, {"seconds": phase.worked_seconds / num_grown})
    rank_fn = partial(rank, run.config.evaluation.samples.prior)
    told = read(kind, found[kind], run.task.answer_tokens, rank_fn)
    return found[kind], told, read_json(timed)["seconds"] if timed.exists() else math.nan


def seated(run: Run, batches: list[Prompts], search: SearchConfig) -> SearchConfig:
    """Let as many trees grow at once as problems, or as rows of the run's own trees, allow."""
    c, mesh = run.config, sharding.make_mesh(run.config.sharding)
    own = c.search, c.evaluation.samples, c.evaluation.search
    held = max(rows_at_once(c, mesh, known) for known in own)
    most = max(1, int(held // work_of(search, c.trace.max_steps).num_rows))
    return replace(search, num_trees=min(most, num_problems(batches), search.num_trees or most))


def leave_out(learnt: Task, task: Task, split: str) -> tuple[Task, int]:
    """Drop what a run may have trained on: (the task, how many). Raises UserError if all is."""
    rows, problems = (*learnt.train, *learnt.demonstrations), getattr(task, split)
    known = {text for row in rows for text in (row.prompt, row.substance)} - {""}
    kept = tuple(row for row in problems if known.isdisjoint((row.prompt, row.substance)))
    told = f"the run trained on all {len(problems)} {split} problems; choose others"
    require(bool(kept) or not problems, "--config.tasks", told)
    return replace(task, **{split: kept}), len(problems) - len(kept)


def change(ran: Config, overrides: Sequence[str]) -> Config:
    """Apply overrides to a run's config. Raises UserError for what an evaluation cannot change."""
    config = override(asdict(ran), read_flags(overrides))
    for section in (field.name for field in fields(Config)):
        is_met = section in FREE or getattr(config, section) == getattr(ran, section)
        told = f"is the run's own; an evaluation may differ in {', '.join(FREE)}"
        require(is_met, f"--config.{section}", told)
    kinds = [replace(c.tasks.reasoning_gym, is_unseen=True) for c in (config, ran)]
    is_redrawn = kinds[0] != kinds[1] or config.tasks.seed != ran.tasks.seed
    told = "other templates are held out with another dataset, unseen_share or tasks.seed than the"
    told = f"{told} run's; leave these three as they are"
    c = config.tasks.reasoning_gym
    c.require(not (c.is_unseen and is_redrawn), "is_unseen", told)
    return config
