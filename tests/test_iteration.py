"""The loop whole, on a Countdown so small that a network of width 16 learns its sixteen problems by
heart.
"""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import jax
import numpy as np
import pytest
from solver import solutions

from jaxtrain import datasets, iteration, labels, phases
from jaxtrain.boundaries import TraceConfig
from jaxtrain.build import Functions, build
from jaxtrain.checkpoints import Checkpoints, CheckpointsConfig
from jaxtrain.config import Config, EvaluationConfig, LoopConfig
from jaxtrain.errors import Diverged, UserError
from jaxtrain.labels import LabelsConfig
from jaxtrain.metrics import MetricsLog
from jaxtrain.nn.transformer import ModelConfig
from jaxtrain.progress import Progress
from jaxtrain.prompts import PromptsConfig
from jaxtrain.search import SearchConfig
from jaxtrain.structs import Examples, Kind, Labels, State, Verdict
from jaxtrain.tasks import Demonstration, Task, TasksConfig, make_task
from jaxtrain.tasks.countdown import CountdownConfig
from jaxtrain.trees import Place, TreeFiles
from jaxtrain.updates import FitConfig, PolicyConfig, PrmConfig, UpdatesConfig
from jaxtrain.workdir import open_workdir, run_key

TASKS = TasksConfig(
    countdown=CountdownConfig(max_number=4, max_target=12),
    num_train=16,
    num_dev=0,
    num_test=8,
    num_demonstrations=8,
)
CONFIG = Config(
    tasks=TASKS,
    model=ModelConfig(num_layers=1, width=16, num_heads=2, num_kv_heads=1, mlp_width=32),
    prompts=PromptsConfig(num_problems=16, num_first_problems=8, max_prompt_tokens=9, batch_size=8),
    trace=TraceConfig(max_steps=2, max_step_tokens=12),
    search=SearchConfig(num_simulations=3, num_candidates=2),
    updates=UpdatesConfig(
        policy=PolicyConfig(
            warm_start=FitConfig(num_updates=120, learning_rate=0.02),
            fit=FitConfig(num_updates=4, learning_rate=0.02),
            batch_size=16,
        ),
        prm=PrmConfig(
            warm_start=FitConfig(num_updates=6), fit=FitConfig(num_updates=4), batch_size=8
        ),
    ),
    checkpoints=CheckpointsConfig(num_kept=9),
    evaluation=EvaluationConfig(
        num_problems=8,
        samples=SearchConfig(method="sample", num_samples=2, temperature=0.7),
        search=SearchConfig(num_simulations=3, num_candidates=2),
    ),
    loop=LoopConfig(num_iterations=2),
)


RUN_KEY = run_key({"seed": CONFIG.seed}, {})


class Interrupted(Exception):
    """Stands for a kill: nothing of the loop catches it, and what was not on the disk is lost."""


class InterruptedProgress(Progress):
    """Stop a run where `is_end(phase name, iteration, work done)` first says so."""

    def __init__(self, is_end: Callable[[str, int, int], bool]):
        self.stream = StringIO()
        super().__init__(CONFIG.loop.num_iterations, self.stream)
        self._is_end = is_end

    def phase(self, name, *, iteration=None, **kwargs):
        progress, context = self, super().phase(name, iteration=iteration, **kwargs)

        class Watched:
            def __enter__(self):
                phase = context.__enter__()
                advance = phase.advance

                def watched(amount=1, **sums):
                    advance(amount, **sums)
                    if progress._is_end(name, iteration, phase.done):
                        raise Interrupted

                phase.advance = watched
                if progress._is_end(name, iteration, 0):
                    raise Interrupted
                return phase

            def __exit__(self, *exception):
                return context.__exit__(*exception)

        return Watched()


@pytest.fixture(scope="module")
def task() -> Task:
    """Countdown whose demonstrations are solutions of its own training problems."""
    task = make_task(TASKS)

    def solution(prompt: str) -> str:
        numbers, target = prompt.split("=")
        return solutions(tuple(map(int, numbers.split())), int(target))[0]

    return replace(
        task, demonstrations=tuple(Demonstration(p.prompt, solution(p.prompt)) for p in task.train)
    )


@pytest.fixture(scope="module")
def fns(task):
    """Functions compiled once for all tests; the two searches are one here."""
    built = build(CONFIG, task, Progress(0, StringIO()))
    return replace(built, grow={**built.grow, "search": built.grow["train"]})


@pytest.fixture(scope="module")
def run_in(fns):
    """Run the loop in a folder, as `main` does but for the compilation."""

    def run_in(
        folder: Path,
        task: Task,
        config: Config = CONFIG,
        progress: Progress | None = None,
        fns: Functions = fns,
    ) -> State:
        with (
            pytest.MonkeyPatch.context() as patch,
            open_workdir(folder, {"seed": config.seed}, {}) as workdir,
            progress or Progress(config.loop.num_iterations, StringIO()) as progress,
        ):
            patch.setattr(iteration, "build", lambda *_, **__: fns)
            return iteration.run_loop(config, task, workdir, progress)

    return run_in


@pytest.fixture(scope="module")
def straight(run_in, task, tmp_path_factory) -> tuple[State, Path]:
    """Run all iterations without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    return run_in(folder, task), folder


@pytest.fixture(scope="module")
def warm(run_in, task, tmp_path_factory) -> Path:
    """Run the warm start alone; what starts from a copy of its folder need not repeat it."""
    folder = tmp_path_factory.mktemp("warm")
    run_in(folder, task, replace(CONFIG, loop=LoopConfig(num_iterations=0)))
    return folder


@pytest.fixture
def folder(warm, tmp_path) -> Path:
    """Make a run folder that stands after iteration 0."""
    return shutil.copytree(warm, tmp_path / "run")


def read_rows(folder: Path) -> list[dict]:
    """Read the metrics log without what a clock measured."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if not key.startswith("time/")} for row in rows
    ]


def assert_same_run(state: State, folder: Path, straight: tuple[State, Path]) -> None:
    expected_state, expected_folder = straight
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)
    for (path, leaf), expected in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected_state), strict=True
    ):
        assert np.array_equal(np.asarray(leaf), np.asarray(expected)), jax.tree_util.keystr(path)
    assert read_rows(folder) == read_rows(expected_folder)
    for path in sorted(expected_folder.glob("[lt]*/*/*.npz")):  # labels and trees
        with np.load(folder / path.relative_to(expected_folder)) as ours, np.load(path) as theirs:
            assert all(np.array_equal(ours[name], theirs[name]) for name in theirs.files), path


def collected(folder: Path, task: Task, fns: Functions, newest: int) -> tuple[Examples, Examples]:
    """Make anew what a run of `CONFIG` learnt from in iteration `newest`."""
    with open_workdir(folder, {"seed": CONFIG.seed}, {}) as workdir:
        log, progress = MetricsLog(folder), Progress(0, StringIO())
        with Checkpoints(workdir.checkpoints, CONFIG.checkpoints, RUN_KEY) as checkpoints:
            run = phases.Run(CONFIG, task, fns, workdir, log, progress, checkpoints)
            rounds = {i: phases.read_round(run, i) for i in range(newest + 1)}
    return datasets.collect(rounds, CONFIG.datasets, CONFIG.max_length, CONFIG.seed)[:2]


def test_one_iteration_then_another_equals_two(run_in, task, folder, straight):
    run_in(folder, task, replace(CONFIG, loop=LoopConfig(num_iterations=1)))
    assert_same_run(run_in(folder, task), folder, straight)


def test_searches_side_by_side_grow_what_one_after_the_other_do(run_in, task, tmp_path, straight):
    config = replace(CONFIG, loop=LoopConfig(num_iterations=2, overlap_searches=True))
    assert_same_run(run_in(tmp_path, task, config), tmp_path, straight)


@pytest.mark.parametrize("kind", labels.TARGETS)
def test_two_iterations_learn_from_every_kind_of_label(run_in, task, folder, kind):
    state = run_in(folder, task, replace(CONFIG, labels=LabelsConfig(kind)))
    told = {key: value for row in read_rows(folder) for key, value in row.items()}
    assert int(state.iteration) == 2 and told["datasets/num_values"] > 0
    assert told["updates/prm/num_updates"] == 4 and told["updates/prm/num_skipped"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.prm.params))
    # unsolved trees are learnt from by every kind but the paper's
    for path in folder.glob(f"labels/[12]/search-*.{kind}.npz"):
        made = Labels(**np.load(path))
        is_solved = (made.verdict == Verdict.CORRECT).any(axis=1)
        assert made.is_labelled[is_solved].any()
        assert is_solved.all() or made.is_labelled[~is_solved].any() == (kind != "quality")


@pytest.mark.parametrize(
    ("phase", "amount"), [("policy updates", 50), ("search", 8), ("evaluation", 0)]
)
def test_interrupted_warm_start_ends_where_a_straight_one_does(
    run_in, task, tmp_path, straight, phase, amount
):
    with pytest.raises(Interrupted):
        run_in(
            tmp_path,
            task,
            progress=InterruptedProgress(lambda name, i, done: (name, done) == (phase, amount)),
        )
    assert_same_run(run_in(tmp_path, task), tmp_path, straight)


@pytest.mark.parametrize("phase", ["policy updates", "prm updates"])
def test_a_fit_saved_on_its_way_goes_on_from_there(run_in, task, tmp_path, straight, phase):
    config = replace(CONFIG, checkpoints=CheckpointsConfig(num_kept=9, num_updates=2))
    with pytest.raises(Interrupted):
        run_in(
            tmp_path,
            task,
            config,
            InterruptedProgress(lambda name, i, done: (name, i, done) == (phase, 1, 3)),
        )
    (tmp_path / "fits" / "0").mkdir(exist_ok=True)  # a kill right after a checkpoint leaves it
    seen = []
    state = run_in(
        tmp_path,
        task,
        config,
        InterruptedProgress(
            lambda name, i, done: seen.append(done) if (name, i) == (phase, 1) else None
        ),
    )
    assert seen[:3] == [0, 2, 3], "two updates were on the disk, the third was done again"
    assert_same_run(state, tmp_path, straight)
    assert not (tmp_path / "fits").exists()


def test_a_fit_keeps_to_its_rates_and_epochs(run_in, task, fns, tmp_path):
    rates = []

    def update(base, learner, batch, rate):
        rates.append(float(rate))
        return fns.update_policy(base, learner, batch, rate)

    later_fits = FitConfig(num_updates=4, learning_rate=0.01, max_epochs=1.5)
    policy = replace(CONFIG.updates.policy, fit=later_fits)
    config = replace(
        CONFIG, updates=replace(CONFIG.updates, policy=policy), loop=LoopConfig(num_iterations=1)
    )
    run_in(tmp_path, task, config, fns=replace(fns, update_policy=update, imitate=update))
    num_first = policy.warm_start.num_updates
    first, later = rates[:num_first], rates[num_first:]
    assert (max(first), max(later)) == pytest.approx((0.02, 0.01), rel=1e-2)
    num_traces = datasets.num_rows(collected(tmp_path, task, fns, 1)[0])
    assert len(later) == math.ceil(1.5 * num_traces / 16) < 4


INTERRUPTIONS = {
    "in search, after the first shard": lambda name, i, done: (
        (name, i) == ("search", 1) and done > 0
    ),
    "after search": lambda name, i, done: (name, i) == ("policy updates", 1),
    "in policy training": lambda name, i, done: (name, i) == ("policy updates", 1) and done == 2,
    "in PRM training": lambda name, i, done: (name, i) == ("prm updates", 2) and done == 3,
    "between checkpoint and evaluation": lambda name, i, done: (name, i) == ("evaluation", 1),
    "in the last evaluation": lambda name, i, done: (name, i) == ("evaluation", 2) and done > 8,
}


@pytest.mark.parametrize("is_end", INTERRUPTIONS.values(), ids=INTERRUPTIONS)
def test_interrupted_run_ends_where_a_straight_one_does(run_in, task, folder, straight, is_end):
    with pytest.raises(Interrupted):
        run_in(folder, task, progress=InterruptedProgress(is_end))
    assert_same_run(run_in(folder, task), folder, straight)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_stop_around_the_save_of_a_checkpoint(run_in, task, folder, straight, monkeypatch, moment):
    save = Checkpoints.save

    def interrupted(self, state):
        if int(state.iteration) == 1 and moment == "before":
            raise Interrupted
        save(self, state)
        if int(state.iteration) == 1:
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Checkpoints, "save", interrupted)
        run_in(folder, task)
    assert_same_run(run_in(folder, task), folder, straight)


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of the largest file of a folder."""
    largest = max(
        (file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def truncate(path: Path) -> None:
    for file in path.rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "truncated arrays": truncate,
    "arrays gone": lambda path: [file.unlink() for file in path.rglob("d/*")],
    "metadata gone": lambda path: next(path.rglob("_METADATA")).unlink(),
    "an empty folder": empty,
    "a folder with a stray file": lambda path: (path / "prm" / "notes.txt").write_text("mine"),
    "no seal": lambda path: (path / "sha256.json").unlink(),
    "a spoilt seal": lambda path: (path / "sha256.json").write_text("{"),
    "another iteration's": lambda path: (
        shutil.rmtree(path),
        shutil.copytree(path.with_name("1"), path),
    ),
    "gone": shutil.rmtree,
    "a stray newer one": lambda path: (path.with_name("7")).mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_a_good_one(run_in, task, straight, tmp_path, damage):
    folder = shutil.copytree(straight[1], tmp_path / "run")
    damage(folder / "checkpoints" / "2")
    told = InterruptedProgress(lambda *phase: False)
    assert_same_run(run_in(folder, task, progress=told), folder, straight)
    lines = told.stream.getvalue()
    if (tmp_path / "run" / "checkpoints" / "2").exists() and damage is not shutil.rmtree:
        assert "set aside in damaged/checkpoints-" in lines
        assert len(list((folder / "damaged").iterdir())) == 1
    assert re.search(r"iteration [12] is used|what came after iteration 1 is done again", lines)


def test_without_a_good_checkpoint_nothing_begins_again(run_in, task, folder):
    flip_a_bit(folder / "checkpoints" / "0")
    before = {
        path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()
    }
    with pytest.raises(
        UserError, match=r"holds no good checkpoint: .*checkpoints/0/.*sha256 differs"
    ):
        run_in(folder, task)
    assert {
        path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()
    } == before
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="tells of a checkpoint, and none is there"):
        run_in(folder, task)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="report.html tells of a checkpoint, and none is there"):
        run_in(folder, task)


def test_a_report_that_is_gone_is_written_again(run_in, task, straight, tmp_path):
    folder = shutil.copytree(straight[1], tmp_path / "run")
    (folder / "report.html").unlink()
    assert_same_run(run_in(folder, task), folder, straight)
    assert "iteration 2 of 2" in (folder / "report.html").read_text()


def test_a_checkpoint_of_another_run_is_not_taken(run_in, task, straight, tmp_path):
    folder = shutil.copytree(straight[1], tmp_path / "run")
    told = InterruptedProgress(lambda *phase: False)
    with (
        open_workdir(tmp_path / "other", {"seed": 1}, {}) as workdir,
        Checkpoints(workdir.checkpoints, CONFIG.checkpoints, workdir.run_key) as other,
    ):
        other.save(straight[0])
    shutil.rmtree(folder / "checkpoints" / "2")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "2", folder / "checkpoints" / "2")
    assert_same_run(run_in(folder, task, progress=told), folder, straight)
    assert "checkpoints/2 is of another run; it is set aside" in told.stream.getvalue()


def test_a_fit_that_ends_beyond_all_numbers_is_not_saved(run_in, task, fns, folder):
    def overflowing(base, learner, batch, rate):
        learner, info = fns.update_prm(base, learner, batch, rate)
        return learner.replace(params=jax.tree.map(lambda x: x / 0, learner.params)), info

    with pytest.raises(
        Diverged, match="iteration 1: parameters or moments of the prm are not finite"
    ):
        run_in(folder, task, fns=replace(fns, update_prm=overflowing))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["0"]


def test_what_cannot_be_scored_pushes_no_checkpoint_out(run_in, task, fns, folder):
    """An overflow that shows in the evaluation only: the checkpoint before is still there."""

    def overflowing(*args):
        tree = fns.grow["greedy"](*args)
        return tree.replace(is_ok=np.zeros_like(tree.is_ok))

    config = replace(
        CONFIG,
        checkpoints=CheckpointsConfig(num_kept=1),
        evaluation=replace(CONFIG.evaluation, strategies=("greedy",)),
    )
    run_in(folder, task, replace(config, loop=LoopConfig(num_iterations=1)))
    with pytest.raises(Diverged, match="iteration 2: all 8 trees"):
        run_in(folder, task, config, fns=replace(fns, grow={**fns.grow, "greedy": overflowing}))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["0", "1", "2"]


@pytest.mark.parametrize(
    "key", ["search/num_simulations", "updates/prm/loss", "evaluation/greedy/accuracy"]
)
def test_a_thinned_log_is_told(run_in, task, straight, tmp_path, key):
    folder = shutil.copytree(straight[1], tmp_path / "run")
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [row for row in rows if not ('"iteration": 1,' in row and f'"{key}"' in row)]
    assert len(kept) == len(rows) - 1
    (folder / "metrics.jsonl").write_text("".join(kept))
    told = InterruptedProgress(lambda *phase: False)
    run_in(folder, task, progress=told)
    assert (
        "metrics.jsonl lacks rows of iterations 1: what they told is lost" in told.stream.getvalue()
    )


def test_an_interrupted_start_says_what_begins_again(run_in, task, tmp_path, straight):
    with pytest.raises(Interrupted):
        run_in(tmp_path, task, progress=InterruptedProgress(INTERRUPTIONS["in policy training"]))
    told = InterruptedProgress(lambda *phase: False)
    run_in(tmp_path, task, progress=told)
    assert (
        "iteration 1: what is finished of its trees is used again, its fits begin again"
        in told.stream.getvalue()
    )


def test_a_damaged_fit_begins_again_where_it_is_good(run_in, task, tmp_path, straight):
    config = replace(CONFIG, checkpoints=CheckpointsConfig(num_kept=9, num_updates=2))
    is_end = lambda name, i, done: (name, i, done) == ("prm updates", 1, 3)  # noqa: E731
    with pytest.raises(Interrupted):
        run_in(tmp_path, task, config, InterruptedProgress(is_end))
    flip_a_bit(tmp_path / "fits" / "1" / "prm" / "2")
    told = InterruptedProgress(lambda *phase: False)
    assert_same_run(run_in(tmp_path, task, config, told), tmp_path, straight)
    assert "the fit goes on from update 0" in told.stream.getvalue()
    assert (tmp_path / "damaged" / "fits-1-prm-2").is_dir()


def test_updates_skipped_in_a_row_are_counted_across_a_resume(run_in, task, fns, folder):
    """Three in a row stop a run: two that were saved, and the first one after them."""

    def skipped(base, learner, batch, rate):
        _, info = fns.update_prm(base, jax.tree.map(lambda x: x.copy(), learner), batch, rate)
        return learner, info | {"is_skipped": np.True_}

    config = replace(
        CONFIG,
        checkpoints=CheckpointsConfig(num_kept=9, num_updates=2),
        updates=replace(CONFIG.updates, max_skipped=3),
    )
    is_end = lambda name, i, done: (name, i, done) == ("prm updates", 1, 3)  # noqa: E731
    broken = replace(fns, update_prm=skipped)
    with pytest.raises(Interrupted):
        run_in(folder, task, config, InterruptedProgress(is_end), broken)
    with pytest.raises(Diverged, match="iteration 1: 3 updates of the prm in a row"):
        run_in(folder, task, config, fns=broken)


def spoil(learner, where, value):
    """Put a value into one parameter, or one moment, of a learner."""
    tree = getattr(learner, where)
    leaves, treedef = jax.tree.flatten(tree)
    k = next(k for k, leaf in enumerate(leaves) if leaf.ndim == 2)
    leaves[k] = leaves[k].at[0, 0].set(value)
    return learner.replace(**{where: jax.tree.unflatten(treedef, leaves)})


@pytest.mark.parametrize("network", ["policy", "prm"])
@pytest.mark.parametrize(
    ("where", "value"), [("params", np.nan), ("params", 1e38), ("opt_state", np.nan)]
)
def test_what_is_not_finite_stops_the_run(run_in, task, fns, folder, network, where, value):
    """The checkpoint holds it, as if a bit had flipped in memory before the save."""
    with Checkpoints(folder / "checkpoints", CONFIG.checkpoints, RUN_KEY) as checkpoints:
        state = checkpoints.restore(0, fns.abstract_state)
        checkpoints.save(state.replace(**{network: spoil(getattr(state, network), where, value)}))
        sealed = (folder / "checkpoints" / "0" / "sha256.json").read_bytes()
    with pytest.raises(Diverged, match="iteration 1: .* were (set aside|not finite)") as caught:
        run_in(folder, task)
    assert "learning_rate" in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["0"]
    assert (folder / "checkpoints" / "0" / "sha256.json").read_bytes() == sealed


def test_stop_between_report_and_log_scores_again(run_in, task, folder, straight, monkeypatch):
    def interrupted(*args, **more):
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(phases, "render_report", interrupted)
        run_in(folder, task)
    assert_same_run(run_in(folder, task), folder, straight)


def test_finished_run_started_again_changes_nothing(run_in, task, straight):
    _, folder = straight
    before = (folder / "metrics.jsonl").read_bytes()
    again = run_in(folder, task, progress=InterruptedProgress(lambda *phase: True))
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert_same_run(again, folder, straight)


def test_finished_shards_are_not_grown_again(run_in, task, folder, monkeypatch):
    grown = Counter()
    save = TreeFiles.save

    def counting(files, place, tree):
        grown[place.iteration, place.purpose] += 1
        save(files, place, tree)

    monkeypatch.setattr(TreeFiles, "save", counting)
    with pytest.raises(Interrupted):
        run_in(
            folder,
            task,
            progress=InterruptedProgress(INTERRUPTIONS["in search, after the first shard"]),
        )
    run_in(folder, task)
    assert grown[1, "search"] == grown[2, "search"] == 2


def test_files_are_left_behind(straight):
    _, folder = straight
    for name in ("config.json", "manifest.json", "metrics.jsonl", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    for i, num_shards in ((0, 1), (1, 2), (2, 2)):
        assert (folder / "checkpoints" / str(i) / "policy").is_dir()
        assert len(list((folder / "labels" / str(i)).glob("search-*.quality.npz"))) == num_shards
        assert len(list((folder / "trees" / str(i)).glob("search-*.npz"))) == num_shards
    assert len(list((folder / "tensorboard").glob("events.out.tfevents.*"))) == 1


METRICS = (  # names that scripts rely on
    "evaluation/greedy/accuracy",
    "evaluation/greedy/low",
    "evaluation/greedy/high",
    "evaluation/greedy/num_problems",
    "evaluation/greedy/tokens",
    "evaluation/self_consistency/accuracy",
    "evaluation/best_of_k/accuracy",
    "evaluation/weighted_vote/accuracy",
    "evaluation/search/accuracy",
    "evaluation/pass_at_k/accuracy",
    "evaluation/prm/auroc",
    "evaluation/prm/squared_error",
    "evaluation/prm/squared_error_constant",
    "evaluation/prm/squared_error_depth",
    "evaluation/num_too_long",
    "evaluation/num_errors",
    "evaluation/num_set_aside",
    "search/num_simulations",
    "search/share_wasted_simulations",
    "search/share_useful_lanes",
    "search/share_duplicates",
    "labels/num_trees",
    "labels/num_set_aside",
    "labels/num_trees_without_correct",
    "labels/num_unparsable",
    "labels/num_errors",
    "datasets/num_traces",
    "datasets/num_paths",
    "datasets/value_histogram",
    "prompts/num_too_long",
    "updates/policy/loss",
    "updates/policy/num_updates",
    "updates/policy/num_skipped",
    "updates/policy/is_skipped_fit",
    "updates/prm/loss",
    "updates/prm/num_skipped",
)


def test_every_iteration_has_one_row_with_each_metric(straight):
    _, folder = straight
    counted = Counter((row["iteration"], key) for row in read_rows(folder) for key in row)
    assert {
        (i, name): counted[i, name] for i in range(3) for name in METRICS if counted[i, name] != 1
    } == {}


def test_duplicates_are_a_share_of_the_candidates(straight):
    """A rollout's step has no siblings, so it is none of them."""
    _, folder = straight
    kinds = np.concatenate(
        [np.load(path)["kind"].ravel() for path in (folder / "trees" / "2").glob("search-*.npz")]
    )
    counts = Counter(kinds.tolist())
    rows = [row for row in read_rows(folder) if row["iteration"] == 2]
    (told,) = [row["search/share_duplicates"] for row in rows if "search/share_duplicates" in row]
    assert counts[Kind.ROLLOUT] and told == counts[Kind.DUPLICATE] / (
        counts[Kind.DUPLICATE] + counts[Kind.CANDIDATE]
    )


def test_report_shows_the_last_iteration(straight):
    _, folder = straight
    text = (folder / "report.html").read_text()
    assert "iteration 2 of 2" in text


@pytest.fixture(scope="module")
def learnt(straight, task, fns):
    """What both networks are fitted to in the last iteration."""
    return collected(straight[1], task, fns, 2)


def test_all_that_the_policy_learns_from_verifies(learnt, task):
    traces, _ = learnt
    rows, problems = traces.rows, {problem.id: problem for problem in task.train}
    assert len(rows.tokens) >= 5
    for row, problem_id in enumerate(traces.problem_id):
        (response,), end = np.nonzero(rows.weight[row]), np.count_nonzero(rows.until[row])
        prompt, problem = response[0], problems[int(problem_id)]
        assert response.tolist() == list(range(prompt, end))
        assert task.tokenizer.decode(rows.tokens[row, :prompt]) == problem.prompt
        assert rows.tokens[row, end - 1] == task.tokenizer.end_id
        text = task.tokenizer.decode(rows.tokens[row, prompt:end])
        assert task.verify(problem, text) is Verdict.CORRECT


def test_prm_learns_from_both_outcomes(learnt):
    """The paths come of trees that were solved, and the PRM sees wrong answers too."""
    _, paths = learnt
    assert 0 < paths.is_correct.sum() < len(paths.is_correct)
    assert np.ptp(paths.rows.target[paths.rows.weight > 0]) > 0.3


def test_test_problems_are_never_trained_on(learnt, task):
    test_ids = {problem.id for problem in (*task.test, *task.dev)}
    trained = {int(i) for examples in learnt for i in examples.problem_id}
    assert trained and not trained & test_ids


def test_trees_on_disk_are_those_of_the_config(straight):
    _, folder = straight
    c = CONFIG.search
    with open_workdir(folder, {"seed": 0}, {}) as workdir:
        tree = workdir.trees.load(Place(2, 1))
    assert tree is not None
    assert tree.kind.shape == (8, c.num_simulations * (c.num_candidates + 1))
    # A tree of which all is closed ends before its budget.
    assert tree.num_simulations.max() == c.num_simulations and tree.num_simulations.min() >= 1
    assert (tree.kind == Kind.ROLLOUT).any()


@pytest.fixture(scope="module")
def unsolving(run_in, task, tmp_path_factory):
    """A run whose task finds every answer wrong, so that no tree has a correct leaf."""

    class Hopeless(type(task)):
        def verify(self, problem, text):
            return Verdict.WRONG

    stream, folder = StringIO(), tmp_path_factory.mktemp("unsolving")
    state = run_in(folder, Hopeless(**vars_of(task)), progress=Progress(2, stream))
    return state, read_rows(folder), stream.getvalue(), folder


def vars_of(task: Task) -> dict:
    return {name: getattr(task, name) for name in task.__dataclass_fields__}


def test_unsolved_trees_give_no_labels_and_both_fits_are_skipped(unsolving, task, fns):
    _, rows, told, folder = unsolving
    assert [len(examples.problem_id) for examples in collected(folder, task, fns, 2)] == [0, 0]
    merged = {
        i: {k: v for row in rows if row["iteration"] == i for k, v in row.items()} for i in range(3)
    }
    assert [merged[i]["labels/num_trees_without_correct"] for i in range(3)] == [8, 16, 16]
    assert [merged[i]["labels/num_labelled"] for i in range(3)] == [0, 0, 0]
    assert [merged[i]["updates/policy/is_skipped_fit"] for i in range(3)] == [0, 1, 1]
    assert [merged[i]["updates/prm/is_skipped_fit"] for i in range(3)] == [1, 1, 1]
    assert merged[2]["evaluation/greedy/accuracy"] == 0
    assert "iteration 1: the policy has no data, its fit is skipped" in told


def test_skipped_fits_change_no_parameters(unsolving, fns):
    state, _, _, folder = unsolving
    with Checkpoints(folder / "checkpoints", CONFIG.checkpoints, RUN_KEY) as checkpoints:
        first = checkpoints.restore(0, fns.abstract_state)
    for ours, theirs in ((state.policy, first.policy), (state.prm, first.prm)):
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), ours, theirs)))


def test_report_tells_of_skipped_fits(unsolving):
    *_, folder = unsolving
    assert "its fit was skipped" in (folder / "report.html").read_text()


def test_no_demonstrations_and_no_prompt_that_fits(run_in, task, tmp_path):
    """Nothing to learn and nothing to search: everything is skipped, counted, and the run ends."""
    long = tuple(replace(problem, prompt="1" * 20 + "=1\n") for problem in task.train)
    stream = StringIO()
    state = run_in(
        tmp_path, replace(task, train=long, demonstrations=()), progress=Progress(2, stream)
    )
    rows = read_rows(tmp_path)
    assert int(state.iteration) == 2
    assert [row["prompts/num_too_long"] for row in rows if "prompts/num_too_long" in row] == [
        8,
        16,
        16,
    ]
    assert "iteration 0: the policy has no data, its fit is skipped" in stream.getvalue()


@pytest.mark.parametrize(
    ("num_updates", "said"), [(120, "20 updates of the policy in a row"), (0, "all 8 trees")]
)
def test_a_network_that_has_blown_up_stops_the_run(run_in, fns, task, tmp_path, num_updates, said):
    def broken(key):
        learner = fns.init_policy(key)
        return learner.replace(params=jax.tree.map(lambda x: x * np.float32("nan"), learner.params))

    policy = replace(CONFIG.updates.policy, warm_start=FitConfig(num_updates=num_updates))
    config = replace(CONFIG, updates=replace(CONFIG.updates, policy=policy))
    with pytest.raises(Diverged, match=f"iteration 0: {said}"):
        run_in(tmp_path, task, config, fns=replace(fns, init_policy=broken))
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_fewer_evaluation_problems_than_a_report_shows(run_in, task, tmp_path):
    config = replace(
        CONFIG,
        loop=LoopConfig(num_iterations=0),
        evaluation=replace(CONFIG.evaluation, num_problems=3),
    )
    run_in(tmp_path, task, config)
    assert [
        row["evaluation/search/num_problems"]
        for row in read_rows(tmp_path)
        if "evaluation/search/num_problems" in row
    ] == [3]
    assert (tmp_path / "report.html").read_text().count("<article>") == 6


def test_demonstrations_that_do_not_fit_are_counted(run_in, task, tmp_path):
    long = Demonstration(task.train[0].prompt, "1" * 99)
    config = replace(CONFIG, loop=LoopConfig(num_iterations=0))
    run_in(tmp_path, replace(task, demonstrations=(long, task.demonstrations[0])), config)
    counts = [
        row["prompts/num_demonstrations_too_long"]
        for row in read_rows(tmp_path)
        if "tasks/solvable" in row
    ]
    assert counts == [1]


def test_damaged_shard_is_grown_again(run_in, task, folder, straight):
    with pytest.raises(Interrupted):
        run_in(folder, task, progress=InterruptedProgress(INTERRUPTIONS["after search"]))
    shard = folder / "trees" / "1" / "search-00000.npz"
    shard.write_bytes(shard.read_bytes()[:-40])
    assert_same_run(run_in(folder, task), folder, straight)


@pytest.mark.parametrize("iteration", [0, 1])
@pytest.mark.parametrize("is_there", [True, False])
def test_lost_trees_that_are_still_learnt_from_are_grown_again(
    run_in, task, straight, tmp_path, iteration, is_there
):
    """Those of the warm start, whose PRM no checkpoint holds, too."""
    folder = shutil.copytree(straight[1], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "2")
    shard = folder / "trees" / str(iteration) / "search-00000.npz"
    shard.write_bytes(shard.read_bytes()[:-40]) if is_there else shard.unlink()
    assert_same_run(run_in(folder, task), folder, straight)


def test_trees_that_cannot_be_grown_again_are_one_line(run_in, task, folder):
    run_in(folder, task, replace(CONFIG, loop=LoopConfig(num_iterations=1)))
    shutil.rmtree(folder / "checkpoints" / "0")
    (folder / "trees" / "1" / "search-00001.npz").unlink()
    with pytest.raises(UserError, match="trees of iteration 1 .* checkpoint 0, but .*; restore"):
        run_in(folder, task)
    assert (folder / "checkpoints" / "1").is_dir()


def test_nothing_is_judged_twice(run_in, task, folder):
    asked = Counter()

    class Counting(type(task)):
        def verify(self, problem, text):
            asked[problem.id, text] += 1
            return super().verify(problem, text)

    counting = Counting(**vars_of(task))
    with pytest.raises(Interrupted):
        run_in(folder, counting, progress=InterruptedProgress(INTERRUPTIONS["after search"]))
    before, config = asked.total(), replace(CONFIG, loop=LoopConfig(num_iterations=1))
    assert before > 0
    with pytest.raises(Interrupted):  # the search of iteration 1 is read, and the warm start's too
        run_in(folder, counting, config, InterruptedProgress(INTERRUPTIONS["after search"]))
    assert asked.total() == before


def test_damaged_labels_are_made_again(run_in, task, folder, straight):
    with pytest.raises(Interrupted):
        run_in(folder, task, progress=InterruptedProgress(INTERRUPTIONS["after search"]))
    shard = folder / "labels" / "1" / "search-00000.quality.npz"
    shard.write_bytes(shard.read_bytes()[:-40])
    told = InterruptedProgress(lambda *phase: False)
    assert_same_run(run_in(folder, task, progress=told), folder, straight)
    assert "set aside in damaged/labels-1-search-0000" in told.stream.getvalue()
    assert "its trees are judged again" in told.stream.getvalue()
