"""Open what a run starts from, and runs that are there: for commands, benchmarks and scripts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain import sharding
from jaxtrain.build import Functions, build
from jaxtrain.checkpoints import Checkpoints, NoteFn
from jaxtrain.config import Config
from jaxtrain.errors import UserError, require
from jaxtrain.flags import read_config
from jaxtrain.hub import Pretrained, open_pretrained, resolve
from jaxtrain.hub.pretrained import WEIGHT, load_params, load_prm
from jaxtrain.keys import Purpose
from jaxtrain.metrics import MetricsLog
from jaxtrain.nn.heads import init_head
from jaxtrain.progress import Progress
from jaxtrain.prompts import encode, make_encode
from jaxtrain.report.accounts import tell_nothing_learnt
from jaxtrain.report.scores import WITH_CALCULATOR
from jaxtrain.search import SearchConfig
from jaxtrain.sharding import ShardingConfig
from jaxtrain.structs import Networks, Prompts, Tree
from jaxtrain.tasks import Problem, Task, digest, file_hashes, make_task
from jaxtrain.trees import TreeFiles
from jaxtrain.updates import PrmConfig, UpdatesConfig
from jaxtrain.workdir import Workdir, read_old, run_key


def open_model(config: Config) -> tuple[Config, Pretrained | None]:
    """Open the pretrained model that a config names, and take over its shape. Raises UserError."""
    if not config.hub.pretrained:
        return config, None
    pretrained = open_pretrained(config.hub)
    return replace(config, model=resolve(config.model, pretrained)), pretrained


def list_facts(config: Config, task: Task, pretrained: Pretrained | None) -> dict[str, Any]:
    """List what a run depends on besides its config: hashes of data, problems and model."""
    hashes = {**file_hashes(config.tasks), "tasks.problems.sha256": digest(task)}
    hashes |= {"prompts.date": config.prompts.date} if config.prompts.date else {}
    return hashes | dict(pretrained.hashes if pretrained else {})


@dataclass(frozen=True)
class OpenRun:
    """A run that is there, opened to be read; what it started from, when that is asked for."""

    path: Path
    config: Config  # for the devices here
    manifest: dict[str, Any]

    @cached_property
    def pretrained(self) -> Pretrained | None:
        """The model that it started from. Raises UserError where that is not what it was."""
        pretrained = open_pretrained(self.config.hub) if self.config.hub.pretrained else None
        hashes, facts = pretrained.hashes if pretrained else {}, self.manifest["facts"]
        started = {name: value for name, value in facts.items() if name.startswith("hub/")}
        for name in sorted(started.keys() | hashes.keys()):
            told = f"{name} is not what it was when {self.path} started from it"
            is_same = started.get(name) == hashes.get(name)
            require(is_same, self.config.hub.pretrained, told)
        return pretrained

    @cached_property
    def task(self) -> Task:
        """Its task, made anew. Raises UserError where problems or verifier are others."""
        c, facts, own = self.config.tasks, self.manifest["facts"], "tasks.name.sha256"
        task = make_task(c, self.pretrained.tokenizer if self.pretrained else None)
        is_same, flag = facts.get(own) == file_hashes(c).get(own), f"--workdir {self.path}"
        require(is_same, flag, f"{c.name} is not what it was when the run started")
        # An evaluation elsewhere left out what its run had learnt.
        is_part = "evaluated.iteration" in facts
        told = "its config no longer makes the problems that it trained on, so none can be told to"
        told = f"{told} be held out; take the jaxtrain and the data of its manifest.json"
        require(is_part or digest(task) == facts["tasks.problems.sha256"], flag, told)
        return task

    @property
    def trees(self) -> TreeFiles:
        """The trees that it left; one that is damaged stays where it is."""
        config, key = asdict(self.config), self.manifest["run_key"]
        solve_key = run_key(config, self.manifest["facts"], config["evaluation"])
        return TreeFiles(self.path, key, solve_key, is_read_only=True)

    def checkpoints(self, note_fn: NoteFn = lambda text: None) -> Checkpoints:
        """Open its checkpoints, for a `with`; nothing in them is changed."""
        folder, key = self.path / "checkpoints", self.manifest["run_key"]
        return Checkpoints(folder, self.config.checkpoints, key, True, note_fn)

    def load(
        self,
        iteration: int | None = None,
        config: Config | None = None,
        task: Task | None = None,
        progress: Progress | None = None,
    ) -> "Loaded":
        """Load the networks of a checkpoint, the newest by default, to search with them.

        config, task: others than its own, for the same networks. Raises UserError without it.
        """
        config, task = config or self.config, task or self.task
        with self.checkpoints(*([progress.note] if progress else [])) as stored:
            iteration = stored.choose(iteration)
            fns = build(config, task, progress, self.pretrained)
            networks = stored.restore_networks(iteration, fns.abstract_state, fns.init_base())
        return Loaded(config, task, fns, networks, iteration)


@dataclass(frozen=True)
class Loaded:
    """Two networks, and what it takes to search with them."""

    config: Config
    task: Task
    fns: Functions
    networks: Networks
    iteration: int
    has_prm: bool = True  # False: every step is worth 0.5

    def encode(self, problems: Sequence[Problem], size: int = 1) -> Prompts:
        """Encode problems as one batch of `size` at least, and of a size that devices can share;
        what is left of it has problem id -1. Raises UserError for a problem that is too long.
        """
        c, task = self.config.prompts, self.task
        encode_fn = make_encode(c, task.tokenizer, task.demonstrations)
        for problem in problems:
            if (num_tokens := len(encode_fn(problem))) > c.max_prompt_tokens:
                told = f"{problem.prompt[:40]!a}: its prompt has {num_tokens} tokens"
                limit = f"--config.prompts.max_prompt_tokens={c.max_prompt_tokens}"
                raise UserError(f"{told}, and {limit}; ask for less, or raise it")
        num_shards = sharding.num_shards(sharding.make_mesh(self.config.sharding))
        size = -(-max(size, len(problems)) // num_shards) * num_shards
        return encode(problems, encode_fn, c.max_prompt_tokens, size)[0][0]

    def grow(self, prompts: Prompts, searching: SearchConfig | None = None) -> Tree:
        """Grow a tree behind every prompt, by `evaluation.search` or another search: host arrays.

        What is drawn depends on the seed, the iteration, the ids of the problems and nothing else.
        """
        searching = searching or self.config.evaluation.search
        keys = self.fns.problem_keys(self.iteration, int(Purpose.SOLVE), prompts.problem_id)
        grow_fn = self.fns.grow_by(searching)
        tree = grow_fn(*self.networks, prompts, keys, np.float32(searching.temperature))
        return jax.device_get(tree)


def load_pretrained(
    config: Config, pretrained: Pretrained, task: Task, progress: Progress | None = None
) -> Loaded:
    """Load a pretrained policy, and its PRM where it has one, to search with them as they are."""
    # A PRM's head says how many values it tells apart.
    prm, learning = pretrained.prm, PrmConfig()
    num_labels = prm.shapes[WEIGHT][0] if prm else 1
    if num_labels > 1:
        learning = replace(learning, objective="bins", num_bins=num_labels)
    model, updates = resolve(config.model, pretrained), UpdatesConfig(prm=learning)
    config = replace(config, model=model, updates=updates)
    fns = build(config, task, progress, pretrained)
    abstract = fns.abstract_state.networks
    policy = load_params(pretrained, abstract.policy)
    value = {"backbone": policy, "head": init_head(config.model.width)}
    if prm:
        value = load_prm(prm, abstract.prm, policy.get("unembedding"))
    return Loaded(config, task, fns, Networks({}, policy, value), 0, prm is not None)


def open_run(path: str | Path) -> OpenRun:
    """Open a run to read it. Raises UserError where it is none."""
    path = Path(path)
    values, manifest = read_old(path)
    for name, content in (("config.json", values), ("manifest.json", manifest)):
        require(bool(content), f"--workdir {path}", f"holds no {name}, so it is no run")
    try:
        config = read_config(values)
    except (UserError, ValueError, TypeError) as error:
        told = f"{path / 'config.json'}: is no config of this version ({error})"
        raise UserError(f"{told}; take the jaxtrain that wrote it") from error
    return OpenRun(path, replace(config, sharding=ShardingConfig()), manifest)


def summary(workdir: Workdir) -> str:
    """Say in two lines what came of a run, and in a third that nothing was learnt, if so it was."""
    all_rows = MetricsLog(workdir.path).read()
    needed = [f"evaluation/greedy/{name}" for name in ("accuracy", "low", "high", "num_problems")]
    rows = [row for row in all_rows if all(key in row for key in needed)]
    ends, told = rows[:1] + rows[1:][-1:], []  # the first and the last, if it is another
    for row in ends:
        share, low, high, _ = (row[key] for key in needed)
        told.append(f"{share:.1%} [{low:.1%}, {high:.1%}] after iteration {row['iteration']}")

    lines = [str(workdir.report), tell_nothing_learnt(all_rows)]
    if rows:
        how = WITH_CALCULATOR if rows[-1].get("evaluation/has_calculator") else ""
        num_problems = rows[-1][needed[-1]]
        lines.insert(0, f"greedy accuracy{how} {' -> '.join(told)} ({num_problems} problems)")
    return "\n".join(filter(None, lines))
