"""Scorers that run foreign code on what a model wrote, in processes that can be killed.

Run as a file it is the worker: it makes one reasoning-gym dataset, or wakes math-verify, and
answers requests in JSON. Some scorers evaluate the answer as Python, or read a part of it
and leave the rest; these see only text made of the few tokens that an answer can need (`TOKENS`).
Every answer is scored in a child of its own, under limits of memory, time, files and processes,
without pipes, environment and rights of root. The child says one word, by an exit status drawn anew
for each answer, and is killed with all that it started. So an answer can spoil no verdict but its
own. It is no sandbox: judged code that did run could find the status in its memory, or guess it,
and only Linux finds all that left its session.
"""

import contextlib
import ctypes
import json
import math
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import weakref
from itertools import product
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MEMORY = 2 * 2**30  # bytes of address space of a child
MAX_REPLY = 2**22  # bytes
# Some generators iterate over sets: with another hash seed, the same index would be another item.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
NOBODY = 65534  # the unprivileged user; limits on processes hold for it, and not for root
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36

# What answers are made of where a scorer evaluates them: no attribute, no string, no unlisted name.
# The letters N, O, Q and S are sympy's own; `Integral` would answer with the question itself.
ARITHMETIC = r"[0-9]+|[-+()\s]|\*(?!\*)|/(?!/)"
VARIABLE = r"\b[A-MPRT-Za-z]\b(?!\s*\()"
FUNCTION = r"\b(?:exp|log|ln|sqrt|a?sin|a?cos|a?tan|a?sinh|a?cosh|a?tanh|sec|csc|cot|pi)\b"
CALCULUS = rf"\b[0-9]+(?:\.[0-9]+)?\b|[-+()\s]|\*\*?|/(?!/)|{VARIABLE}|{FUNCTION}"
# An expression in LaTeX or plain. Where other signs stand (`~`, `?`, `\approx`) math-verify reads a
# part alone, and it adds up numbers with nothing but space between.
COMMAND = (
    r"\\(?:[dt]?frac|d?binom|sqrt|pi|cdot|times|div|left|right|infty|circ|pm|cup|cap|leq?|geq?|text"
    r"|mathrm|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp|alpha|beta|theta)(?![A-Za-z])"
)
EXPRESSION = rf"[0-9]+(?!\s+[0-9])|[A-Za-z]|[-+*/^_()\[\]{{}}|,.!<>=\s]|\\[{{}}%]|{COMMAND}"
MATH = "math-verify"
TOKENS = {
    MATH: EXPRESSION,
    "countdown": ARITHMETIC,
    "puzzle24": ARITHMETIC,
    "complex_arithmetic": r"[-+0-9.ij*()\s]",
    "intermediate_integration": CALCULUS,
    "simple_integration": CALCULUS,
    "polynomial_multiplication": CALCULUS,
    "binary_matrix": r"[0-9\s]",
    "spiral_matrix": r"[-0-9\s]",
    "n_queens": r"\b[Q_]\b|\s",
    "string_insertion": r"[A-Z]",
}


class Worker:
    """Ask a dataset for its items and for scores, in a process of its own."""

    def __init__(self, name: str, params: dict[str, Any], timeout: float = 5.0):
        """Remember what to make (MATH: a dataset of golds), and the seconds for an answer."""
        self._setup, self._timeout = {"name": name, "params": params}, timeout
        self._process: subprocess.Popen | None = None

    def item(self, index: int | str) -> dict[str, Any]:
        """Return the question, answer, reference solution and template ("" for none) of an item.

        The answer is None where it is no text, or not of the tokens of its kind. Raises
        RuntimeError with the reason.
        """
        reply = self.ask({"item": index}, timeout=60.0)
        if reply is None or "error" in reply:
            raise RuntimeError(reply["error"] if reply else "the process died")
        return reply

    def judge(self, index: int | str, answer: str) -> bool | None:
        """Say whether an answer gets full marks; None where the scorer failed, hung or died."""
        request = {"judge": index, "answer": answer, "timeout": self._timeout}
        reply = self.ask(request, self._timeout + 30.0)
        return None if reply is None else reply.get("verdict")

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """Send one request; None where no answer came in time, and the process is gone."""
        if self._process is None:
            self._pipe, theirs = Pipe()
            command = [sys.executable, "-s", "-P", str(Path(__file__).resolve())]
            # what foreign code prints is read by nobody
            null = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            how: Any = {"env": ENVIRONMENT, "cwd": "/", "pass_fds": [theirs.fileno()], **null}
            process = subprocess.Popen([*command, str(theirs.fileno())], **how)
            theirs.close()
            self._process = process
            self._finalizer = weakref.finalize(self, stop, process, self._pipe)
            if self._exchange(self._setup, timeout=120.0) is None:
                return None
        return self._exchange(request, timeout)

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._finalizer()
            self._process = None

    def _exchange(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, EOFError, ValueError):
            send(self._pipe, request)
            if self._pipe.poll(timeout):
                return json.loads(self._pipe.recv_bytes(MAX_REPLY))
        self.close()
        return None


def stop(process: subprocess.Popen, pipe: Connection) -> None:
    """Kill a worker."""
    process.kill()
    process.wait()
    pipe.close()


def send(pipe: Connection, value: dict[str, Any]) -> None:
    """Send a message."""
    pipe.send_bytes(json.dumps(value).encode())


def is_safe(kind: str, answer: str) -> bool:
    """Say whether the scorer of a kind of dataset may see an answer: most evaluate nothing."""
    return kind not in TOKENS or re.fullmatch(rf"(?:{TOKENS[kind]})*+", answer) is not None


def serve(pipe: Connection) -> None:
    """Be the worker: the first message sets it up, every further one is a request."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_DUMPABLE, 0)  # or a child of the same user could write to its pipe through /proc
    setup = json.loads(pipe.recv_bytes())
    problem, entries, warm = "", {}, set()
    try:
        if setup["name"] == MATH:
            dataset: Any = Expressions()
        else:
            import reasoning_gym  # pyright: ignore[reportMissingImports]

            dataset = reasoning_gym.create_dataset(setup["name"], **setup["params"])
    except BaseException as error:
        dataset, problem = None, f"{type(error).__name__}: {error}"
    send(pipe, {"ready": True})
    while True:  # until the owner is gone
        request = json.loads(pipe.recv_bytes())
        try:
            if dataset is None:
                raise RuntimeError(problem)
            index = request.get("item", request.get("judge"))
            if index not in entries:
                entries[index] = dataset[index]
            entry = entries[index]
            if "item" in request:
                send(pipe, describe(entry, setup["name"]))
            elif not is_safe(setup["name"], request["answer"]):
                send(pipe, {"verdict": False})
            else:
                # Scoring the gold imports and caches what the scorer needs, for every child.
                if index not in warm:
                    warm.add(index)
                    with contextlib.suppress(Exception):
                        dataset.score_answer(answer=entry["answer"], entry=entry)
                send(pipe, {"verdict": judge_in_child(dataset, entry, request, pipe)})
        except BaseException as error:
            send(pipe, {"error": f"{type(error).__name__}: {error}"})


class Expressions:
    """Let math-verify judge, in the form of a dataset whose items are golds."""

    # What most answers need is loaded before a child is forked, by comparing each with each: one of
    # root may not be able to import, and the library would call what it cannot compare wrong.
    WARM = (r"\frac{1}{2}", "(1, 2)", "[0,1)", r"2\sqrt{2}+x^2", r"\{1,2\}", "x=1", r"\sin(\pi)")
    WARM += (r"\begin{pmatrix}1&2\end{pmatrix}", r"\log_2 8", r"x \geq 1", r"50\%")

    def __init__(self):
        import math_verify  # pyright: ignore[reportMissingImports]

        self._verify, self._parse = math_verify.verify, math_verify.parse
        for gold, given in product(self.WARM, repeat=2):
            self.score_answer(given, self[gold])

    def __getitem__(self, gold: str) -> dict[str, Any]:
        return {"question": "", "answer": gold, "metadata": {}}

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        # Its own clock is off: whoever forked this process has one that stops everything.
        never: Any = None  # it is declared to want seconds
        gold, given = (
            self._parse(f"${text}$", parsing_timeout=never) for text in (entry["answer"], answer)
        )
        return float(self._verify(gold, given, timeout_seconds=None))


def describe(entry: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return what a task wants to know of an item."""
    answer, metadata = entry["answer"], entry["metadata"]
    return {
        "question": entry["question"],
        "answer": answer if isinstance(answer, str) and is_safe(kind, answer) else None,
        "solution": entry.get("answer_cot") or metadata.get("answer_cot") or "",
        # Where a dataset is made of templates, questions with the same variables are of one.
        "template": " ".join(sorted(metadata.get("variables") or ())),
    }


def judge_in_child(dataset: Any, entry: Any, request: dict, pipe: Connection) -> bool | None:
    """Score one answer in a forked child; None where no finite number came out of it in time."""
    right, wrong = secrets.SystemRandom().sample(range(1, 256), 2)
    child = os.fork()
    if child == 0:
        status = 0
        try:
            confine(pipe)
            score = float(dataset.score_answer(answer=request["answer"], entry=entry))
            if math.isfinite(score):
                status = right if score >= 1.0 else wrong
        finally:
            os._exit(status)
    signal.signal(signal.SIGALRM, lambda *_: kill(child))
    signal.setitimer(signal.ITIMER_REAL, request["timeout"])
    _, ending = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    kill_descendants()
    return {right: True, wrong: False}.get(os.waitstatus_to_exitcode(ending))


def confine(pipe: Connection) -> None:
    """Give up what judged code must not have: a pipe, memory, files, processes, rights of root."""
    os.setsid()
    pipe.close()
    for what, limit in (("AS", MEMORY), ("FSIZE", 0), ("NPROC", 0), ("CORE", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (limit, limit))
    with contextlib.suppress(OSError):  # not root, or a root that may not change users
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_descendants() -> None:
    """Kill and reap what judged code started, in any session: this process inherits orphans."""
    me = os.getpid()
    with contextlib.suppress(ChildProcessError, FileNotFoundError):  # none is left; no Linux
        while True:
            for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split():
                kill(int(pid))
            os.waitpid(-1, 0)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def prctl(option: int, value: int) -> None:
    """Ask Linux for a property of this process; other systems have none."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    with contextlib.suppress(EOFError):
        serve(Connection(int(sys.argv[1])))
