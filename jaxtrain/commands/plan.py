"""The command: `jaxtrain plan --config configs/tpu_v4.py`, or `--plan` in a run's command."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from jaxtrain.commands.run import tell_usage
from jaxtrain.errors import UserError
from jaxtrain.flags import parse
from jaxtrain.plan import plan
from jaxtrain.progress import Progress
from jaxtrain.runs import open_model
from jaxtrain.tasks import make_task


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Print what a run would need. Raises UserError where it does not fit, or cannot be known."""
    if tell_usage(arguments):
        return
    config, _ = parse(["jaxtrain", *arguments])
    try:
        config, _ = open_model(config)
    except UserError as error:
        if not config.model.vocab_size:
            raise
        print(f"planned by the shape in the config, since the model cannot be opened: {error}\n")
    if not config.model.vocab_size:
        size = make_task(config.tasks).tokenizer.vocab_size
        config = replace(config, model=replace(config.model, vocab_size=size))
    for line in plan(config, leaving.enter_context(Progress(0))):
        print(line, flush=True)
