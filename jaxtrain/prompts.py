"""Stage 1 of 7. Task in, Prompts out.

Which problems an iteration sees, and in which fixed shape. A prompt over the limit is left out and
counted, never truncated; the last batch is filled with rows of problem id -1, so every batch has
one shape and one compilation.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from jaxtrain.errors import Count, Natural, Section, UserError, one_of
from jaxtrain.keys import Purpose, host_rng
from jaxtrain.structs import Prompts, Tokenizer

Problem = Any  # a task's, of which id, prompt and question are read
Encode = Callable[[Problem], list[int]]  # a problem, or that of a demonstration, into tokens


@dataclass(frozen=True)
class PromptsConfig(Section, at="prompts"):
    """How many problems an iteration searches, and in what shape."""

    # problems an iteration draws from the train split; none: all of them
    num_problems: Count | None = 1024
    # problems of iteration 0, whose trees start the PRM (D_V0); none: all of the train split
    num_first_problems: Count | None = 512
    max_prompt_tokens: Count = 64  # P; a longer prompt is left out and counted
    batch_size: Count = 128  # B: problems searched at once, over all devices
    # plain: the task's own; few_shot: behind demonstrations; chat: the model's chat template
    style: Annotated[str, one_of("plain", "few_shot", "chat")] = "plain"
    num_shots: Count = 4  # few_shot: demonstrations in front of every problem
    system: str = ""  # chat: the system text; empty: the template's own
    # traces sampled of each problem that no tree of an iteration solved, with a hint in front; the
    # policy learns the right ones without it (STaR). 0: none
    num_hinted: Natural = 0
    hint: str = "The answer is {gold}."  # the line in front, with the problem's own {gold}
    date: str = ""  # chat: what day it is, YYYY-MM-DD; empty: the day on which the run starts

    def check(self) -> None:
        try:
            datetime.date.fromisoformat(self.date or "2000-01-01")
        except ValueError as error:
            told = f"--config.prompts.date={self.date}: must be a day, as YYYY-MM-DD"
            raise UserError(told) from error
        self.require("{gold}" in self.hint, "hint", "must say {gold}, in braces")


def fix_date(config: PromptsConfig, before: str) -> PromptsConfig:
    """Fix the day that chats are told: `before`, when the run started, or today if it is new."""
    if config.style != "chat" or config.date:
        return config
    return replace(config, date=before or datetime.date.today().isoformat())


def draw(
    problems: Sequence[Problem], num_problems: int | None, seed: int, iteration: int
) -> list[Problem]:
    """Draw an iteration's problems without replacement; each epoch is a permutation of its own.

    Iterations take `num_problems` at a time from the endless concatenation of the epochs, so every
    problem is seen equally often. None takes all.
    """
    total = len(problems)
    size = total if num_problems is None else min(num_problems, total)
    drawn, left, epoch = [], [], 0
    for _ in range(iteration + 1 if size else 0):
        drawn, left = left[:size], left[size:]
        if len(drawn) < size:
            order = host_rng(seed, Purpose.PROMPTS, epoch).permutation(total)
            # A problem that the last epoch's end already gave to this iteration waits for its next
            # turn.
            fresh = order[~np.isin(order, drawn)][: size - len(drawn)]
            left, epoch = order[~np.isin(order, fresh)].tolist(), epoch + 1
            drawn += fresh.tolist()
    return [problems[i] for i in drawn]


def make_encode(
    config: PromptsConfig, tokenizer: Tokenizer, demonstrations: Sequence[Any]
) -> Encode:
    """Make the function that turns a problem, or that of a demonstration, into prompt tokens."""
    if config.style == "chat":
        return lambda problem: tokenizer.encode_chat(problem.question, config.system, config.date)
    num_shots = config.num_shots if config.style == "few_shot" else 0
    shots = "".join(f"{shot.prompt}{shot.response}\n\n" for shot in demonstrations[:num_shots])
    return lambda problem: tokenizer.encode_start(shots + problem.prompt)


def hinted(problem: Problem, hint: str) -> Problem:
    """Put a hint in front of what is asked, on a line of its own."""
    told = hint.replace("{gold}", problem.gold) + "\n"
    return replace(problem, prompt=told + problem.prompt, question=told + problem.question)


def encode(
    problems: Sequence[Problem], encode_fn: Encode, max_prompt_tokens: int, batch_size: int
) -> tuple[list[Prompts], int]:
    """Encode problems into batches of one shape. Returns them and the number of those too long."""
    encoded = [(problem.id, encode_fn(problem)) for problem in problems]
    fitting = [(i, ids) for i, ids in encoded if len(ids) <= max_prompt_tokens]
    batches = []
    for start in range(0, len(fitting), batch_size):
        tokens = np.zeros((batch_size, max_prompt_tokens), np.int32)
        # A padding row has one token, so that no network ever reads an empty row.
        length, problem_id = np.ones(batch_size, np.int32), np.full(batch_size, -1, np.int32)
        for row, (i, ids) in enumerate(fitting[start : start + batch_size]):
            tokens[row, : len(ids)] = ids
            length[row], problem_id[row] = len(ids), i
        batches.append(Prompts(tokens, length, problem_id))
    return batches, len(encoded) - len(fitting)
