"""Scorers that run foreign code on what a model wrote, in processes that can be killed. Imports nothing of ours.

Run as a file it is the worker: it makes one reasoning-gym dataset and answers one JSON line per request. Every answer
is scored in a child of its own, under limits of memory, time, files and processes, without the pipes and the
environment of the run; the child is killed afterwards. So an answer can spoil no verdict but its own: it cannot hang
the run, change a scorer or speak for it later. It is no sandbox: foreign code runs with the rights of this user.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

MEMORY = 2 * 2**30  # bytes of address space of a child
MAX_REPLY = 2**22  # bytes
# Some generators iterate over sets: with another hash seed, the same index would be another item.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Worker:
    """Ask a dataset for its items and for scores, in a process of its own."""

    def __init__(self, name: str, params: dict[str, Any], timeout: float = 5.0):
        """Remember what to make; the process starts with the first request. timeout: seconds for one answer."""
        self._setup, self._timeout = {"name": name, "params": params}, timeout
        self._process: subprocess.Popen[bytes] | None = None

    def item(self, index: int) -> dict[str, Any]:
        """Return the question, answer, reference solution and template of an item ("" where there is none).

        Raises RuntimeError with the reason.
        """
        reply = self.ask({"item": index}, timeout=60.0)
        if reply is None or "error" in reply:
            raise RuntimeError(reply["error"] if reply else "the process died")
        return reply

    def score(self, index: int, answer: str) -> float | None:
        """Score an answer to an item; None where the scorer failed, took too long or died."""
        request = {"score": index, "answer": answer, "timeout": self._timeout}
        reply = self.ask(request, self._timeout + 10.0)
        return None if reply is None else reply.get("score")

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """Send one request; None where no answer came in time, and the process is gone."""
        if self._process is None and self._start() is None:
            return None
        return self._exchange(request, timeout)

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._finalizer()
            self._process = None

    def _start(self) -> dict[str, Any] | None:
        command = [sys.executable, "-s", "-P", str(Path(__file__).resolve())]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, env=ENVIRONMENT, cwd="/")
        self._finalizer = weakref.finalize(self, stop, self._process)
        return self._exchange(self._setup, timeout=120.0)

    def _exchange(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        reply, deadline = b"", time.monotonic() + timeout
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            while not reply.endswith(b"\n"):
                ready, _, _ = select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))
                piece = os.read(self._process.stdout.fileno(), 65536) if ready else b""
                if not piece or len(reply) > MAX_REPLY:
                    raise OSError("no answer")
                reply += piece
            return json.loads(reply)
        except (OSError, ValueError):
            self.close()
            return None


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def serve() -> None:
    """Be the worker: the first line sets it up, every further line is a request."""
    null = os.open(os.devnull, os.O_RDWR)
    replies = os.dup(1)
    os.dup2(null, 1)  # what foreign code prints is not an answer

    def reply(value: dict[str, Any]) -> None:
        data = json.dumps(value).encode() + b"\n"
        while data:
            data = data[os.write(replies, data) :]

    setup = json.loads(sys.stdin.readline())
    problem, entries = "", {}
    try:
        import reasoning_gym  # pyright: ignore[reportMissingImports]

        dataset = reasoning_gym.create_dataset(setup["name"], **setup["params"])
    except BaseException as error:
        dataset, problem = None, f"{type(error).__name__}: {error}"
    reply({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if dataset is None:
                raise RuntimeError(problem)
            index = request.get("item", request.get("score"))
            if index not in entries:
                entries[index] = dataset[index]
            entry = entries[index]
            if "item" in request:
                solution = entry.get("answer_cot") or entry["metadata"].get("answer_cot") or ""
                answer = entry["answer"] if isinstance(entry["answer"], str) else None
                # Questions with the same variables are of one template, where a dataset is made of templates.
                template = " ".join(sorted(entry["metadata"].get("variables") or ()))
                reply({"question": entry["question"], "answer": answer, "solution": solution, "template": template})
            else:
                arguments = dataset, entry, request["answer"], request["timeout"], (replies, null)
                reply({"score": score_in_child(*arguments)})
        except BaseException as error:
            reply({"error": f"{type(error).__name__}: {error}"})


def score_in_child(dataset: Any, entry: Any, answer: str, timeout: float, pipes: tuple[int, int]) -> float | None:
    """Score one answer in a forked child; None where no finite number came out of it in time."""
    replies, null = pipes
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.close(replies)
            os.close(reader)
            os.dup2(null, 0)
            for what, limit in (("AS", MEMORY), ("FSIZE", 0), ("NPROC", 0), ("CORE", 0)):
                resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (limit, limit))
            os.write(writer, repr(float(dataset.score_answer(answer=answer, entry=entry))).encode())
        finally:
            os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], timeout)
    text = os.read(reader, 64) if ready else b""
    os.close(reader)
    # A session of its own is a group of its own: what the child started dies with it.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) else None


if __name__ == "__main__":
    serve()
