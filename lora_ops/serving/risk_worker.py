"""Scores of answered texts and of pairs, made by a process of its own.

The patterns keep the GIL for tens of milliseconds over a long text. In the gateway's process that time would
stop the event loop and the engine. The process reads one JSON line for each request from its standard input and
answers with one; it ends when its input does, so it never outlives the gateway. Signals are the gateway's to
handle: it ignores SIGINT and SIGTERM, which a terminal or systemd send to both.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import lora_ops
from lora_ops.errors import LoraOpsError
from lora_ops.serving.pair_scores import PairScores, PairTexts, judge
from lora_ops.serving.risk import ANSWER_CHARACTERS, KNOWN_CHARACTERS, Scores, score

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0  # for one request's texts, which take a second at most
RESTART_SECONDS = 1.0
NICENESS = 5  # answers come before scores


class RiskWorker:
    """The process that scores, started at the first text and again where it died; used by one thread.

    Args:
        missed: called with 1 for each request whose texts it could not score.
    """

    def __init__(self, missed: Callable[[int], None] = lambda count: None) -> None:
        self._missed = missed
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._answers: TextIO | None = None
        self._started = -RESTART_SECONDS
        self._reason = ""

    @property
    def pid(self) -> int | None:
        """The process id, or None while none runs."""
        return self._process.pid if self._process else None

    def score(
        self, prompt: str, answer: str, ngram_key: str | None = None, given_from: int = 0
    ) -> Scores | None:
        """Return the scores of one request's texts; None where the process died or is not back yet."""
        cut = prompt[:KNOWN_CHARACTERS], answer[:ANSWER_CHARACTERS]
        answered = self._answer([*cut, ngram_key, given_from])
        return Scores(**answered) if answered else None

    def judge(self, texts: PairTexts) -> PairScores | None:
        """Return the scores of one pair; None as `score`."""

        def cut(answers: Sequence[str]) -> list[str]:
            return [answer[:ANSWER_CHARACTERS] for answer in answers]

        asked = replace(
            texts,
            prompt=texts.prompt[:KNOWN_CHARACTERS],
            production=cut(texts.production),
            shadow=cut(texts.shadow),
        )
        answered = self._answer(asdict(asked))
        return PairScores(**answered) if answered else None

    def _answer(self, asked: list[str | int | None] | dict[str, Any]) -> dict[str, Any] | None:
        try:
            if self._process is None and not self._start():
                self._missed(1)
                return None
            assert self._socket and self._answers
            self._socket.sendall(json.dumps(asked).encode() + b"\n")
            answered: dict[str, Any] = json.loads(self._answers.readline())
            if "error" in answered:
                self._refused(answered["error"])
                return None
            return answered
        except (OSError, ValueError) as error:  # it died, hangs, or broke a line off
            logger.error("The process that scores risks is started again: %s", error or "it took too long.")
            self._end(0)
            self._missed(1)
            return None

    def _refused(self, reason: str) -> None:
        """Count a request whose texts can't be scored; the log names a lasting reason once."""
        if reason != self._reason:
            logger.error("No text is scored or kept: %s", reason)
        self._reason = reason
        self._missed(1)

    def close(self) -> None:
        """End the process in order: it finishes its line first."""
        self._end(ANSWER_SECONDS)

    def _start(self) -> bool:
        """Return whether it runs; one that dies over and over is not started all the time."""
        if time.monotonic() - self._started < RESTART_SECONDS:
            return False
        self._started = time.monotonic()
        self._process, self._socket = process_of(__name__)
        self._socket.settimeout(ANSWER_SECONDS)
        self._answers = self._socket.makefile("r", encoding="utf-8")
        return True

    def _end(self, patience: float) -> None:
        process, self._process = self._process, None
        if self._socket and self._answers:
            with contextlib.suppress(OSError):
                self._answers.close()
                self._socket.close()
        self._socket = self._answers = None
        if process is None:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def process_of(module: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a process that runs a module of this package, and return it with a socket to its input and output.

    Raises:
        OSError: the system starts no more processes.
    """
    ours, its = socket.socketpair()
    with its:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=its.fileno(),
                stdout=its.fileno(),
                env=package_environment(),
            )
        except OSError:
            ours.close()
            raise
    return process, ours


def package_environment() -> dict[str, str]:
    """Return an environment in which a process imports the same package as this one."""
    path = os.pathsep.join([str(Path(lora_ops.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}


def main() -> None:
    """Score the texts of each line of the standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICENESS)
    for line in sys.stdin.buffer:
        try:
            asked = json.loads(line)
            answer = asdict(judge(PairTexts(**asked)) if isinstance(asked, dict) else score(*asked))
        except LoraOpsError as error:  # weights that are missing or others; a text that nobody scored goes
            answer = {"error": str(error)}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
