"""The whole Config, and what is checked of it before anything is written. Stands above the stages.

Every section is a frozen dataclass beside the code that it governs, which checks it alone; those of
evaluation and loop stand here, since they speak of several stages. What can only be told from
several sections, from the devices or from the task's problems is checked here.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax

from jaxtrain import sharding
from jaxtrain.boundaries import TraceConfig
from jaxtrain.checkpoints import CheckpointsConfig
from jaxtrain.compilation import CompilationConfig
from jaxtrain.datasets import DatasetsConfig
from jaxtrain.errors import UserError, require, require_at_least, require_one_of
from jaxtrain.evaluation import STRATEGIES, TREES
from jaxtrain.hub import HubConfig
from jaxtrain.labels import LabelsConfig
from jaxtrain.metrics import WRITERS, package
from jaxtrain.nn.transformer import ModelConfig
from jaxtrain.prompts import PromptsConfig, make_encode
from jaxtrain.search import SearchConfig
from jaxtrain.sharding import ShardingConfig
from jaxtrain.tasks import Task, TasksConfig
from jaxtrain.tasks.base import make_check
from jaxtrain.updates import OBJECTIVES, UpdatesConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """What every iteration is scored on, and how it answers."""

    split: str = "test"  # test: to report; dev: to tune
    # the first ones of the split: the same for every iteration and strategy
    num_problems: int = 512
    # how problems are answered; trees are grown for these alone, and greedy costs a small part
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    # the traces that vote, best-of-k and pass@k choose from; greedy is one of temperature 0
    samples: SearchConfig = SearchConfig(method="sample", temperature=0.7)
    # the search that answers; the trees that are learnt from are those of config.search
    search: SearchConfig = SearchConfig()

    def __post_init__(self):
        require_one_of("evaluation", self, split=("test", "dev"))
        require_at_least(1, "evaluation", self, "num_problems")
        if not self.strategies or not {*self.strategies} <= {*STRATEGIES}:
            told = f"--config.evaluation.strategies={','.join(self.strategies)}"
            raise UserError(f"{told}: must be some of {','.join(STRATEGIES)}")
        require_one_of("evaluation.samples", self.samples, method=("sample",))
        samples, why = self.samples, "must be above 0, or all traces agree"
        require(samples.temperature > 0, "evaluation.samples", samples, "temperature", why)

    @property
    def searches(self) -> dict[str, SearchConfig]:
        """What grows the trees that the strategies read, by the kind of the trees."""
        grown = {
            "greedy": replace(self.samples, num_samples=1, temperature=0.0),
            "samples": self.samples,
            "search": self.search,
        }
        read = {STRATEGIES[name].trees for name in self.strategies}
        return {name: grown[name] for name in TREES if name in read}


@dataclass(frozen=True)
class LoopConfig:
    """The loop around the stages."""

    # after iteration 0, the warm start; may be raised to continue a finished run
    num_iterations: int = 3
    # what shows the metrics beside metrics.jsonl: tensorboard, wandb, trackio
    writers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self):
        require_at_least(0, "loop", self, "num_iterations")
        if not {*self.writers} <= {*WRITERS}:
            told = f"--config.loop.writers={','.join(self.writers)}"
            raise UserError(f"{told}: must be some of {','.join(WRITERS)}, or nothing")


@dataclass(frozen=True)
class Config:
    """Everything a run is made of; `configs/base.py` turns it into flags."""

    seed: int = 0  # of all draws but the task's problems
    tasks: TasksConfig = field(default_factory=TasksConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    # with hub.pretrained the shape is the model's own
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    datasets: DatasetsConfig = field(default_factory=DatasetsConfig)
    updates: UpdatesConfig = field(default_factory=UpdatesConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    compilation: CompilationConfig = field(default_factory=CompilationConfig)

    def __post_init__(self):
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--config.seed={self.seed}: must lie between 0 and 2**31 - 1")
        updates, has_prm = self.updates, self.hub.prm != ""
        why = "has weights of its own, and with --config.updates.lora.rank both share one base"
        is_met = not has_prm or updates.lora.rank is None
        require(is_met, "hub", self.hub, "prm", f"{why}; leave one of them out")
        why = "is what the PRM starts from, and --config.updates.prm.init_from=policy says another"
        is_met = not has_prm or updates.prm.init_from != "policy"
        require(is_met, "hub", self.hub, "prm", f"{why}; leave one of them out")
        for network in ("policy", "prm"):
            objective = getattr(updates, network).objective
            is_met = OBJECTIVES[network][objective].order == "rows"
            is_met |= not self.datasets.group_by_length
            why = f"parts the rows that --config.updates.{network}.objective={objective} compares"
            require(is_met, "datasets", self.datasets, "group_by_length", f"{why}; leave one out")
        self._check_packing()

    def _check_packing(self) -> None:
        table, objective = OBJECTIVES["policy"], self.updates.policy.objective
        is_met = self.datasets.packed_tokens is None or table[objective].is_packable
        packable = " or ".join(name for name, kind in table.items() if kind.is_packable)
        why = f"{objective} compares rows; it goes with --config.updates.policy.objective "
        require(is_met, "datasets", self.datasets, "packed_tokens", why + packable)
        why = f"a text has up to {self.max_length} tokens; choose no less"
        is_met = (self.datasets.packed_tokens or self.max_length) >= self.max_length
        require(is_met, "datasets", self.datasets, "packed_tokens", why)

    @property
    def max_length(self) -> int:
        """L: a prompt and all its steps."""
        return self.prompts.max_prompt_tokens + self.trace.max_steps * self.trace.max_step_tokens

    @property
    def row_length(self) -> int:
        """Columns of a row that trees gave."""
        return self.datasets.packed_tokens or self.max_length

    @property
    def labels_per_row(self) -> int:
        """Labels that such a row of the PRM has at most: those of one path, or of a problem."""
        d, num_labels = self.datasets, self.trace.max_steps
        if d.packed_tokens is None:
            return num_labels
        return min(d.packed_tokens, num_labels * d.max_paths_per_problem * d.paths_rounds)


def check(config: Config, task: Task) -> None:
    """Refuse, before anything is written, what devices or problems do not allow (UserError)."""
    for name in config.loop.writers:
        package(name)
    mesh = sharding.make_mesh(config.sharding)
    check_batches(config, mesh)
    check_checks(config, task, mesh)
    size, num_ids = config.model.vocab_size, task.tokenizer.vocab_size
    if size is not None and size < num_ids:
        raise UserError(f"--config.model.vocab_size={size}: the tokenizer has {num_ids} ids")

    # Both sets must hold problems, and of each some prompt must fit.
    limit, split = config.prompts.max_prompt_tokens, config.evaluation.split
    encode = make_encode(config.prompts, task.tokenizer, task.demonstrations)
    scored = getattr(task, split)[: config.evaluation.num_problems]
    for name, problems in (("train", task.train), (split, scored)):
        if not problems:
            told = f"the task has no {name} problems"
            raise UserError(f"{told}; set --config.tasks.num_{name} above 0")
        if all(len(encode(problem)) > limit for problem in problems):
            longest = max(len(encode(problem)) for problem in problems)
            why = f"no prompt of the {name} problems is that short; {longest} takes them all"
            raise UserError(f"--config.prompts.max_prompt_tokens={limit}: {why}")


def check_checks(config: Config, task: Task, mesh: Any) -> None:
    """Refuse checks of steps where there are none, or no search could ask. Raises UserError."""
    samples, search = config.evaluation.samples, config.evaluation.search
    searches = {"search": config.search, "evaluation.samples": samples, "evaluation.search": search}
    searching = [f"{key}.checks={c.checks}" for key, c in searches.items() if c.checks != "off"]
    asked = searching + ["datasets.drop_false_steps=True"] * config.datasets.drop_false_steps
    if asked and make_check(task, config.trace) is None:
        raise UserError(
            f"--config.{asked[0]}: needs a task with a check_step, and steps that end with a line; "
            "leave it out, or see --config.trace.boundary"
        )
    if searching and (mesh.shape["tp"] > 1 or jax.process_count() > 1):
        raise UserError(
            f"--config.{searching[0]}: a search asks the host, which takes one process and no "
            "tensor parallelism; set --config.sharding.tp=1, or leave it off"
        )


def check_batches(config: Config, mesh: Any) -> None:
    """Refuse batches that a mesh cannot split. Raises UserError."""
    shards, updates = sharding.num_shards(mesh), config.updates
    sections = {"prompts": config.prompts, "updates.policy": updates.policy}
    for name, section in (sections | {"updates.prm": updates.prm}).items():
        why = f"cannot be split over data x fsdp = {shards} devices; choose a multiple"
        require(section.batch_size % shards == 0, name, section, "batch_size", why)
