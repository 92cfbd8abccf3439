"""Open what a run starts from, and runs that are there: for the commands and the benchmarks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtrain.config import Config
from jaxtrain.errors import UserError, require
from jaxtrain.flags import read_config
from jaxtrain.hub import Pretrained, open_pretrained, resolve
from jaxtrain.metrics import MetricsLog
from jaxtrain.report.accounts import tell_nothing_learnt
from jaxtrain.report.scores import WITH_CALCULATOR
from jaxtrain.sharding import ShardingConfig
from jaxtrain.tasks import Task, digest, file_hashes, make_task
from jaxtrain.workdir import Workdir, read_old


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


def read_run(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read config and manifest of a run that is there. Raises UserError where it is none."""
    values, manifest = read_old(path)
    for name, content in (("config.json", values), ("manifest.json", manifest)):
        require(bool(content), f"--workdir {path}", f"holds no {name}, so it is no run")
    try:
        return read_config(values), manifest
    except (UserError, ValueError, TypeError) as error:
        told = f"{path / 'config.json'}: is of another layout ({error})"
        raise UserError(f"{told}; take the jaxtrain that wrote it") from error


def open_run(path: Path) -> tuple[Config, dict[str, Any], Pretrained | None]:
    """Open a run to read it. Returns (config for the devices here, manifest, pretrained model).

    Raises UserError where it is no run, or its model is not what it was.
    """
    config, manifest = read_run(path)
    pretrained = open_pretrained(config.hub) if config.hub.pretrained else None
    hashes = pretrained.hashes if pretrained else {}
    started = {name: value for name, value in manifest["facts"].items() if name.startswith("hub/")}
    for name in sorted(started.keys() | hashes.keys()):
        if started.get(name) != hashes.get(name):
            told = f"{name} is not what it was when {path} started from it"
            raise UserError(f"{config.hub.pretrained}: {told}")
    return replace(config, sharding=ShardingConfig()), manifest, pretrained


def open_task(
    path: Path, config: Config, manifest: dict[str, Any], pretrained: Pretrained | None
) -> Task:
    """Make the task of a run anew. Raises UserError where problems or verifier are others."""
    task = make_task(config.tasks, pretrained.tokenizer if pretrained else None)
    facts, own = manifest["facts"], "tasks.name.sha256"
    if facts.get(own) != file_hashes(config.tasks).get(own):
        told = f"{config.tasks.name} is not what it was when the run started"
        raise UserError(f"--workdir {path}: {told}")
    # An evaluation elsewhere left out what its run had learnt.
    is_whole = "evaluated.iteration" not in facts
    if is_whole and digest(task) != facts["tasks.problems.sha256"]:
        raise UserError(
            f"--workdir {path}: its config no longer makes the problems that it trained on, so "
            "none can be told to be held out; take the jaxtrain and the data of its manifest.json"
        )
    return task


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
