"""The command: `python -m jaxtrain.export --workdir W --to DIR [--iteration K] [--network policy|prm]`.

Takes a network out of a run as a Hugging Face folder, tokenizer and all; see `hub/export.py` for what is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from jaxtrain.build import build
from jaxtrain.checkpoints import Checkpoints
from jaxtrain.commands import Parser
from jaxtrain.hub import Pretrained
from jaxtrain.hub.export import write_policy, write_prm
from jaxtrain.metrics import MetricsLog
from jaxtrain.progress import Progress
from jaxtrain.runs import open_run
from jaxtrain.tasks import make_task

WRITERS = {"policy": write_policy, "prm": write_prm}


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Export one network of one checkpoint. Raises UserError."""
    parser = Parser(__doc__, to="the folder to write; it must not exist")
    parser.add_argument("--network", choices=WRITERS, default="policy")
    options = parser.parse_args(arguments)
    export(options.workdir, options.to, options.iteration, options.network, leaving)
    print(options.to)


def export(workdir: Path, to: Path, iteration: int | None, network: str, leaving: ExitStack) -> None:
    """Write one network. Raises UserError for a folder that is no run, or lacks the checkpoint."""
    config, manifest, pretrained = open_run(workdir)
    tokenizer = pretrained.tokenizer if pretrained else make_task(config.tasks).tokenizer
    progress = leaving.enter_context(Progress(0))
    folder, c = workdir / "checkpoints", config.checkpoints
    with Checkpoints(folder, c, is_read_only=True, note_fn=progress.note) as checkpoints:
        iteration = checkpoints.choose(iteration)
        state = checkpoints.restore(iteration, build(config, tokenizer, progress).abstract_state)
    card = model_card(workdir, manifest, network, iteration, pretrained)
    WRITERS[network](to, getattr(state, network).params, config.model, tokenizer, config.max_length, card)


def model_card(workdir: Path, manifest: dict, network: str, iteration: int, pretrained: Pretrained | None) -> str:
    """Say where a network comes from and how well it did: numbers and hashes of its run."""
    rows = [row for row in MetricsLog(workdir).read() if row["iteration"] == iteration]
    metrics = {key: value for row in rows for key, value in row.items() if key.startswith("evaluation/")}
    table = [f"| {key} | {value:.4g} |" for key, value in sorted(metrics.items()) if isinstance(value, int | float)]
    what = {
        "policy": "The policy: a causal language model.",
        "prm": "The process reward model: its one label is the value of the text up to a token, at the last token of "
        "a step; clip it to [0, 1].",
    }[network]
    start = pretrained.where.rsplit("/", 1)[-1] if pretrained else "random weights"
    facts = [f"- {key}: `{value}`" for key, value in sorted(manifest["facts"].items())]
    about = [
        f"- iteration {iteration}, seed {manifest['seed']}, started from {start}",
        f"- config sha256: `{manifest['config_sha256']}`, commit: `{manifest['git_commit']}`",
        *facts,
    ]
    table = ["| metric | value |", "| --- | --- |", *table] if table else ["It was not scored."]
    head = ["---", "library_name: transformers", "tags: [jaxtrain]", "---", "", f"# {what}", ""]
    return "\n".join([*head, "Made by jaxtrain.", "", *about, "", *table, ""])
