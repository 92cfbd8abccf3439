"""The command: `python -m jaxtrain.export --workdir W --to DIR [--iteration K] [--network
policy|prm] [--adapter]`.

Takes a network out of a run as a Hugging Face folder, tokenizer and all; see `hub/export.py` for
what is in it. What LoRA trained is added into the weights, or leaves alone for PEFT, by --adapter.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict

from jaxtrain.build import build
from jaxtrain.commands import Parser
from jaxtrain.errors import UserError
from jaxtrain.hub.card import model_card
from jaxtrain.hub.export import value_labels, write_adapter, write_network
from jaxtrain.metrics import MetricsLog
from jaxtrain.nn import lora
from jaxtrain.progress import Progress
from jaxtrain.runs import open_run
from jaxtrain.tasks import Task, make_task


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Export one network of one checkpoint. Raises UserError for what is no run, or lacks it."""
    parser = Parser(__doc__, to="the folder to write; it must not exist")
    parser.add_argument("--network", choices=("policy", "prm"), default="policy")
    parser.add_argument("--adapter", action="store_true", help="what LoRA trained, for PEFT")
    options = parser.parse_args(arguments)
    workdir, network, is_adapter = options.workdir, options.network, options.adapter

    # The network of the checkpoint.
    ran = open_run(workdir)
    config, pretrained, trained = ran.config, ran.pretrained, ran.config.updates.lora
    if is_adapter and (trained.rank is None or pretrained is None):
        why = "trained all weights" if trained.rank is None else "started from random weights"
        raise UserError(f"--adapter: {workdir} {why}; leave --adapter out")
    # Its text is all that is needed of a task, whose data may be gone.
    task = Task("", pretrained.tokenizer) if pretrained else make_task(config.tasks)
    progress = leaving.enter_context(Progress(0))
    with ran.checkpoints(progress.note) as checkpoints:
        iteration = checkpoints.choose(options.iteration)
        fns = build(config, task, progress, pretrained)
        params = checkpoints.restore_params(iteration, network, fns.abstract_state)
    rows = [row for row in MetricsLog(workdir).read() if row["iteration"] == iteration]
    shown = [(d.prompt, d.response.partition("\n")[0] + "\n") for d in task.demonstrations[:1]]
    told = (network, iteration, ran.manifest, rows, config.trace.boundary, pretrained)
    num_outputs = len(value_labels(params["head"])) if network == "prm" else 1
    card = model_card(*told, is_adapter, num_outputs, config.trace.calculator, *shown)

    # Adapters alone, or whole weights: what other programs load knows no adapters.
    if is_adapter:
        assert pretrained is not None
        told = (params, task.tokenizer, card, pretrained)
        write_adapter(options.to, network, *told, **asdict(trained))
    else:
        if trained.rank is not None:
            laid = lora.merge(fns.init_base(), params.get("backbone", params))
            weights = lora.fold(laid, trained.scale)
            params = weights if network == "policy" else params | {"backbone": weights}
        how = (config.model, task.tokenizer, config.max_length, card, pretrained)
        write_network(options.to, network, params, *how)
    print(options.to)
