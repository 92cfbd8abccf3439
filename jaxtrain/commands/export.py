"""The command: `python -m jaxtrain.export --workdir W --to DIR [--iteration K] [--network
policy|prm]`.

Takes a network out of a run as a Hugging Face folder, tokenizer and all; see `hub/export.py` for
what is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from jaxtrain.build import build
from jaxtrain.checkpoints import Checkpoints
from jaxtrain.commands import Parser
from jaxtrain.hub.card import model_card
from jaxtrain.hub.export import write_network
from jaxtrain.metrics import MetricsLog
from jaxtrain.progress import Progress
from jaxtrain.runs import open_run
from jaxtrain.tasks import make_task


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Export one network of one checkpoint. Raises UserError."""
    parser = Parser(__doc__, to="the folder to write; it must not exist")
    parser.add_argument("--network", choices=("policy", "prm"), default="policy")
    options = parser.parse_args(arguments)
    export(options.workdir, options.to, options.iteration, options.network, leaving)
    print(options.to)


def export(
    workdir: Path, to: Path, iteration: int | None, network: str, leaving: ExitStack
) -> None:
    """Write one network. Raises UserError for a folder that is no run, or lacks the checkpoint."""
    config, manifest, pretrained = open_run(workdir)
    tokenizer = pretrained.tokenizer if pretrained else make_task(config.tasks).tokenizer
    progress = leaving.enter_context(Progress(0))
    folder, key = workdir / "checkpoints", manifest["run_key"]
    with Checkpoints(
        folder, config.checkpoints, key, is_read_only=True, note_fn=progress.note
    ) as checkpoints:
        iteration = checkpoints.choose(iteration)
        abstract = build(config, tokenizer, progress).abstract_state
        params = checkpoints.restore_params(iteration, network, abstract)
    rows = [row for row in MetricsLog(workdir).read() if row["iteration"] == iteration]
    card = model_card(network, iteration, manifest, rows, config.trace.boundary, pretrained)
    how = (config.model, tokenizer, config.max_length, card, pretrained)
    write_network(to, network, params, *how)
