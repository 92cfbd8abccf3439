"""The whole Config, and what is checked of it before anything is written. Stands above the stages.

Every section is a frozen dataclass beside the code that it governs, which checks it alone; those of
evaluation and loop stand here, since they speak of several stages. What can only be told from
several sections, from the devices or from the task's problems is checked here.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import jax

from jaxtrain import sharding
from jaxtrain.boundaries import TraceConfig
from jaxtrain.checkpoints import CheckpointsConfig
from jaxtrain.compilation import CompilationConfig
from jaxtrain.datasets import DatasetsConfig
from jaxtrain.errors import Count, Natural, Section, UserError, one_of, require, some_of
from jaxtrain.evaluation import STRATEGIES, TREES
from jaxtrain.hub import HubConfig
from jaxtrain.labels import LabelsConfig
from jaxtrain.metrics import WRITERS, package
from jaxtrain.nn.transformer import ModelConfig
from jaxtrain.prompts import PromptsConfig, hinted, make_encode
from jaxtrain.search import SearchConfig
from jaxtrain.search.work import work_of
from jaxtrain.sharding import ShardingConfig
from jaxtrain.tasks import Task, TasksConfig
from jaxtrain.tasks.base import make_check
from jaxtrain.updates import OBJECTIVES, UpdatesConfig


@dataclass(frozen=True)
class EvaluationConfig(Section, at="evaluation"):
    """What every iteration is scored on, and how it answers."""

    split: Annotated[str, one_of("test", "dev")] = "test"  # test: to report; dev: to tune
    # the first ones of the split: the same for every iteration and strategy
    num_problems: Count = 512
    # how problems are answered; trees are grown for these alone, and greedy costs a small part
    strategies: Annotated[tuple[str, ...], some_of(STRATEGIES)] = tuple(STRATEGIES)
    # the traces that vote, best-of-k and pass@k choose from; greedy is one of temperature 0
    samples: SearchConfig = SearchConfig(method="sample", temperature=0.7)
    # the search that answers; the trees that are learnt from are those of config.search
    search: SearchConfig = SearchConfig()

    def check(self) -> None:
        self.require(self.samples.method == "sample", "samples.method", "must be sample")
        why = "must be above 0, or all traces agree"
        self.require(self.samples.temperature > 0, "samples.temperature", why)

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
class LoopConfig(Section, at="loop"):
    """The loop around the stages."""

    # after iteration 0, the warm start; may be raised to continue a finished run
    num_iterations: Natural = 3
    # what shows the metrics beside metrics.jsonl: tensorboard, wandb, trackio
    writers: Annotated[tuple[str, ...], some_of(WRITERS)] = ("tensorboard",)
    # two batches are searched side by side, each in memory of its own. It pays on a CPU alone,
    # whose cores the operations of small networks leave idle
    overlap_searches: bool = False


@dataclass(frozen=True)
class Config(Section):
    """Everything a run is made of; `configs/base.py` turns it into flags."""

    seed: int = 0  # of all draws but the task's problems
    tasks: TasksConfig = TasksConfig()
    hub: HubConfig = HubConfig()
    # with hub.pretrained the shape is the model's own
    model: ModelConfig = ModelConfig()
    prompts: PromptsConfig = PromptsConfig()
    trace: TraceConfig = TraceConfig()
    search: SearchConfig = SearchConfig()
    labels: LabelsConfig = LabelsConfig()
    datasets: DatasetsConfig = DatasetsConfig()
    updates: UpdatesConfig = UpdatesConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sharding: ShardingConfig = ShardingConfig()
    loop: LoopConfig = LoopConfig()
    compilation: CompilationConfig = CompilationConfig()

    def check(self) -> None:
        self.require(0 <= self.seed < 2**31, "seed", "must lie between 0 and 2**31 - 1")
        updates, has_prm = self.updates, self.hub.prm != ""
        why = "has weights of its own, and with --config.updates.lora.rank both share one base"
        is_met = not has_prm or updates.lora.rank is None
        self.require(is_met, "hub.prm", f"{why}; leave one of them out")
        for network in ("policy", "prm"):
            objective = getattr(updates, network).objective
            is_met = OBJECTIVES[network][objective].order == "rows"
            is_met |= not self.datasets.group_by_length
            why = f"parts the rows that --config.updates.{network}.objective={objective} compares"
            self.require(is_met, "datasets.group_by_length", f"{why}; leave one out")

        # What is packed.
        table, objective = OBJECTIVES["policy"], updates.policy.objective
        is_met = self.datasets.packed_tokens is None or table[objective].is_packable
        packable = " or ".join(name for name, kind in table.items() if kind.is_packable)
        why = f"{objective} compares rows; it goes with --config.updates.policy.objective "
        self.require(is_met, "datasets.packed_tokens", why + packable)
        why = f"a text has up to {self.max_length} tokens; choose no less"
        self.require(self.row_length >= self.max_length, "datasets.packed_tokens", why)

        # What weighs a step by its traces does not show it on each of them as well.
        is_met = self.labels.kind != "outcome" or self.datasets.shared_steps == "once"
        why = "weighs a step by its traces; it goes with --config.datasets.shared_steps=once"
        self.labels.require(is_met, "kind", why)

        # What hints lead to is a trace, and nothing that a policy would draw without them.
        is_met = not self.prompts.num_hinted or table[objective].rows == "traces"
        traced = " or ".join(name for name, kind in table.items() if kind.rows == "traces")
        why = f"gives traces alone; it goes with --config.updates.policy.objective {traced}"
        self.prompts.require(is_met, "num_hinted", why)

    @property
    def searches(self) -> dict[str, SearchConfig]:
        """All that grows trees, by a key of `phases.GROWN`."""
        num = self.prompts.num_hinted
        hinted = replace(self.search, method="sample", num_samples=num or 1)
        learnt = {"train": self.search} | ({"hinted": hinted} if num else {})
        return learnt | self.evaluation.searches

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
        # A wrong step is one label, and a solution has one behind each of its starts.
        num_references = d.learn_references + d.learn_wrong_steps
        num_paths = d.max_paths_per_problem * d.paths_rounds + num_references
        return min(d.packed_tokens, num_labels * num_paths)


def check(config: Config, task: Task) -> None:
    """Refuse, before anything is written, what devices or problems do not allow (UserError)."""
    for name in config.loop.writers:
        package(name)
    mesh = sharding.make_mesh(config.sharding)
    check_compared(config)
    check_batches(config, mesh)
    check_checks(config, task, mesh)
    size, num_ids = config.model.vocab_size, task.tokenizer.vocab_size
    told = f"the tokenizer has {num_ids} ids"
    config.model.require(size is None or size >= num_ids, "vocab_size", told)

    # Both sets must hold problems, and of each some prompt must fit.
    limit, split = config.prompts.max_prompt_tokens, config.evaluation.split
    encode = make_encode(config.prompts, task.tokenizer, task.demonstrations)
    scored = getattr(task, split)[: config.evaluation.num_problems]
    asked = {"train": task.train, split: scored}
    if config.prompts.num_hinted:
        asked["hinted train"] = [hinted(problem, config.prompts.hint) for problem in task.train]
    for name, problems in asked.items():
        told = f"holds no {name} problems; set --config.tasks.num_{name} above 0"
        require(len(problems) > 0, "the task", told)
        try:
            is_met = any(len(encode(problem)) <= limit for problem in problems)
        except UserError as error:  # the train problems themselves were encoded before
            where = f"--config.prompts.hint={config.prompts.hint}: "
            raise UserError(f"{where * (name == 'hinted train')}{error}") from error
        if not is_met:
            longest = max(len(encode(problem)) for problem in problems)
            why = f"no prompt of the {name} problems is that short; {longest} takes them all"
            raise UserError(f"--config.prompts.max_prompt_tokens={limit}: {why}")


def check_checks(config: Config, task: Task, mesh: Any) -> None:
    """Refuse what the task cannot tell of steps, or no search could ask for. Raises UserError."""
    samples, search = config.evaluation.samples, config.evaluation.search
    searches = {"search": config.search, "evaluation.samples": samples, "evaluation.search": search}
    searching = [f"{key}.checks={c.checks}" for key, c in searches.items() if c.checks != "off"]
    asked = searching + ["datasets.drop_false_steps=True"] * config.datasets.drop_false_steps
    has_solutions = type(task).solution is not Task.solution and config.trace.is_by_line
    why = "needs a task with a solution of its problems, and steps that end with a line"
    is_met = has_solutions or not config.datasets.learn_references
    config.datasets.require(is_met, "learn_references", f"{why}; leave it out")
    is_met = config.datasets.learn_references or not config.datasets.learn_wrong_steps
    config.datasets.require(is_met, "learn_wrong_steps", "needs learn_references=True")
    is_met = not asked or make_check(task, config.trace) is not None
    told = "needs a task with a check_step, and steps that end with a line; leave it out, or see"
    require(is_met, f"--config.{''.join(asked[:1])}", f"{told} --config.trace.boundary")
    is_met = not searching or (mesh.shape["tp"] == 1 and jax.process_count() == 1)
    told = "a search asks the host, which takes one process and no tensor parallelism; set"
    then = "--config.sharding.tp=1, or leave it off"
    require(is_met, f"--config.{''.join(searching[:1])}", f"{told} {then}")


def check_compared(config: Config) -> None:
    """Refuse an objective that compares texts of a problem where there is one. Raises UserError."""
    c, updates = config.datasets, config.updates
    policy = OBJECTIVES["policy"][updates.policy.objective]
    is_by_problem = OBJECTIVES["prm"][updates.prm.objective].order == "problems"
    drawn = work_of(config.search, config.trace.max_steps).num_first
    drawn = drawn if config.search.temperature > 0 else 1
    kept = min(drawn, c.max_paths_per_problem)
    num_policy = kept if policy.rows == "answers" else drawn
    num_prm = kept * c.paths_rounds + c.learn_references
    why = "compares texts of a problem, and one is drawn or kept; raise --config.search."
    why += "temperature, num_samples or num_candidates, or datasets.max_paths_per_problem"
    updates.require(num_policy > 1 or not policy.has_reference, "policy.objective", why)
    updates.require(num_prm > 1 or not is_by_problem, "prm.objective", why)
    is_met = updates.prm.batch_size > 1 or c.packed_tokens is not None or not is_by_problem
    why = f"leaves {updates.prm.objective} nothing to compare; choose 2 or more"
    updates.require(is_met, "prm.batch_size", why)


def check_batches(config: Config, mesh: Any) -> None:
    """Refuse batches that a mesh cannot split. Raises UserError."""
    shards = sharding.num_shards(mesh)
    for section in (config.prompts, config.updates.policy, config.updates.prm):
        why = f"cannot be split over data x fsdp = {shards} devices; choose a multiple"
        section.require(section.batch_size % shards == 0, "batch_size", why)
