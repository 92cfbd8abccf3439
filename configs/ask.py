"""How a pretrained model is asked, by `jaxtrain.solve --model`: the defaults of its flags.

    python -m jaxtrain.solve --model HuggingFaceTB/SmolLM2-135M-Instruct "What is 7 times 8?"

The question is one turn of a chat, a line of the answer is a step, and `####` or `\\boxed{}` gives
the answer. `--config FILE` names another config, `--config.prompts.style=plain` asks a model that
has no chat template. Whatever governs training is not read.
"""

from jaxtrain.configs.base import get_config as base


def get_config():
    c = base()
    c.tasks.name = "jsonl"  # questions; there is no file of them
    c.tasks.jsonl.answer_kind = "text"
    c.model.is_scanned = True  # all layers compile as fast as one

    c.prompts.style = "chat"
    c.prompts.system = (
        "Reason step by step, one step on a line. End with a line of #### and the answer alone."
    )
    c.prompts.max_prompt_tokens = 256
    c.prompts.batch_size = 16
    c.trace.answer = "hash"
    c.trace.max_steps = 16
    c.trace.max_step_tokens = 64
    c.evaluation.samples.num_samples = 8
    c.evaluation.search.num_simulations = 8
    return c
