"""The command: `python -m jaxtrain.export --workdir W --to DIR [--iteration K] [--network policy|prm]`.

Takes a network out of a run as a Hugging Face folder, tokenizer and all; see `hub/export.py` for what is in it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jaxtrain.build import build
from jaxtrain.checkpoints import Checkpoints
from jaxtrain.errors import UserError
from jaxtrain.hub.card import model_card
from jaxtrain.hub.export import write_policy, write_prm
from jaxtrain.main import complain, open_run
from jaxtrain.metrics import MetricsLog
from jaxtrain.progress import Progress
from jaxtrain.tasks import make_task

WRITERS = {"policy": write_policy, "prm": write_prm}


def main(argv: list[str]) -> int:
    """Export one network of one checkpoint. Returns the exit code: 0 done, 2 an error of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="the run folder")
    parser.add_argument("--to", required=True, type=Path, help="the folder to write; it must not exist")
    parser.add_argument("--iteration", type=int, help="the checkpoint; the newest one by default")
    parser.add_argument("--network", choices=WRITERS, default="policy")
    options = parser.parse_args(argv[1:])
    try:
        export(options.workdir, options.to, options.iteration, options.network)
    except UserError as error:
        complain(error)
        return 2
    print(options.to)
    return 0


def export(workdir: Path, to: Path, iteration: int | None, network: str) -> None:
    """Write one network. Raises UserError for a folder that is no run, or lacks the checkpoint."""
    config, manifest, pretrained = open_run(workdir)
    tokenizer = pretrained.tokenizer if pretrained else make_task(config.tasks).tokenizer
    with (
        Progress(0) as progress,
        Checkpoints(workdir / "checkpoints", config.checkpoints, is_read_only=True) as checkpoints,
    ):
        iteration = checkpoints.choose(iteration)
        state = checkpoints.restore(iteration, build(config, tokenizer, progress).abstract_state)
    rows = [row for row in MetricsLog(workdir).read() if row["iteration"] == iteration]
    card = model_card(network, iteration, manifest, rows, config.search.boundary, pretrained)
    params = getattr(state, network).params
    WRITERS[network](to, params, config.model, tokenizer, config.max_length, card, pretrained)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
