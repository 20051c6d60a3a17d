"""What of a text must not leave, found by a process of its own while a client waits for the text.

The patterns keep the GIL: in the gateway's process a long text would stop all other answers, and one that a
recogniser never ends with could not be given up. The process reads a JSON line for a text and answers it before
it gets the next one: the tenants' texts wait in the gateway, by turns, so that a text whose client has gone is
never looked at. It is another process than that of the event log, where texts may wait.
"""

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from lora_ops.detectors.escapes import found_within
from lora_ops.detectors.identifiers import Found
from lora_ops.detectors.insults import packaged_insults
from lora_ops.errors import LoraOpsError
from lora_ops.serving.risk_worker import process_of
from lora_ops.serving.tenant_turns import TenantTurns

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""For one text; the longest answer takes about 0.1 s, and one that is made to take long a second."""
TURN_SECONDS = 30.0
"""Until a text has its turn, at most."""
START_SECONDS = 30.0
"""Until a process has looked at its first text."""
RESTART_SECONDS = 1.0
LONGEST_LINE = 2**26
WARM_UP = "Write to jo@example.org or call +49 30 1234567."


class NotScreened(LoraOpsError):
    """A text could not be looked at, so that it must not leave."""


@dataclass(frozen=True)
class Findings:
    """What was found in a text.

    Attributes:
        identifiers: as `escapes.found_within` gives them.
        insults: the score of the worst sentence, from 0 to 1; 0 where nobody asked.
    """

    identifiers: tuple[Found, ...]
    insults: float


class ScreeningProcess:
    """The process that looks at texts, started by `start` and again where it died; used by one event loop."""

    def __init__(self) -> None:
        self._starting: asyncio.Task[_Running] | None = None
        self._started = -RESTART_SECONDS
        self._reason = ""
        self._turns = TenantTurns()
        self._looks: set[asyncio.Task[dict[str, Any]]] = set()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process id, or None while none runs."""
        running = self._now()
        return running.process.pid if running else None

    async def start(self) -> None:
        """Start it, and wait until it has looked at a first text; where it can't, the log says why."""
        try:
            await self.find(WARM_UP, WARM_UP)
        except NotScreened as error:
            logger.error("No answer that must be looked at leaves: %s", error)

    async def close(self) -> None:
        """End the process in order; no text is looked at from now on."""
        self._closed = True
        if self._starting:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        running = self._now()
        if running:
            await running.close()

    async def find(self, text: str, sentences: str | None = None, *, tenant: str = "") -> Findings:
        """Return the identifiers in a text, and how insulting the worst of these sentences is.

        Args:
            text: where identifiers are looked for.
            sentences: where insults are; None: nowhere.
            tenant: whose text it is. It waits for those of its own tenant, and for one of each other tenant.

        Raises:
            NotScreened: the process died, takes too long, has too much to do, or misses the weights that find
                insults.
        """
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.take(tenant)
        except TimeoutError as error:
            raise NotScreened("too many answers wait to be looked at") from error
        # The turn lasts until the process has answered, also where whoever asked goes meanwhile.
        look = asyncio.create_task(self._look(json.dumps([text, sentences]).encode() + b"\n"))
        self._looks.add(look)
        look.add_done_callback(self._looked)
        answered = await asyncio.shield(look)
        if "error" in answered:
            if self._reason != answered["error"]:  # one that lasts is said once
                self._reason = answered["error"]
                logger.error("No answer can be looked at: %s", self._reason)
            raise NotScreened(self._reason)
        return Findings(tuple(Found(*one) for one in answered["found"]), answered["insults"])

    async def _look(self, asked: bytes) -> dict[str, Any]:
        """Return what the process answers.

        Raises:
            NotScreened: it doesn't.
        """
        try:
            if self._closed:
                raise NotScreened("the gateway ends")
            async with asyncio.timeout(START_SECONDS):
                running = await self._ready()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    return dict(json.loads(await running.ask(asked)))
            except TimeoutError:
                running.kill()
                raise
        except asyncio.CancelledError as error:
            if self._closed:  # its start was cancelled
                raise NotScreened("the gateway ends") from error
            raise
        except TimeoutError as error:
            raise NotScreened("looking at it took too long") from error
        except (OSError, ValueError) as error:
            raise NotScreened("the process that looks at it ended") from error

    def _looked(self, look: "asyncio.Task[dict[str, Any]]") -> None:
        self._looks.discard(look)
        if not look.cancelled():
            look.exception()  # nobody may be there to read it
        self._turns.end()

    def _now(self) -> "_Running | None":
        """Return what runs."""
        task = self._starting
        if task is None or not task.done() or task.cancelled() or task.exception() or task.result().ended:
            return None
        return task.result()

    async def _ready(self) -> "_Running":
        """Return what runs, started where nothing does.

        Raises:
            OSError: it can't be started.
        """
        if self._now() is None and (self._starting is None or self._starting.done()):
            self._starting = asyncio.create_task(self._start())
        assert self._starting
        # Whoever waits no longer must not end the start that others wait for.
        return await asyncio.shield(self._starting)

    async def _start(self) -> "_Running":
        # One that dies over and over is not started all the time.
        await asyncio.sleep(self._started + RESTART_SECONDS - time.monotonic())
        self._started = time.monotonic()
        process, ours = await asyncio.to_thread(process_of, __name__)
        running = await _Running.connected(process, ours)
        try:
            # What it reads and imports for its first text is no time of that text.
            async with asyncio.timeout(START_SECONDS):
                await running.ask(json.dumps([WARM_UP, WARM_UP]).encode() + b"\n")
        except BaseException:
            running.kill()
            raise
        return running


class _Running:
    """A process that runs."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        answers: asyncio.StreamReader,
        asked: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.ended = False
        self._answers, self._asked = answers, asked
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._closing = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def connected(cls, process: subprocess.Popen[bytes], ours: socket.socket) -> "_Running":
        """Return the process with a socket to its input and output."""
        answers, asked = await asyncio.open_connection(sock=ours, limit=LONGEST_LINE)
        return cls(process, answers, asked)

    async def ask(self, line: bytes) -> bytes:
        """Return the answer to a line.

        Raises:
            OSError: it ended.
        """
        if self.ended or self._closing:
            raise ConnectionResetError
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._asked.write(line)
        try:
            await self._asked.drain()
            return await answer
        finally:
            answer.cancel()

    def kill(self) -> None:
        """End it at once."""
        self.ended = True  # nobody asks it again while it dies
        self.process.kill()

    async def close(self) -> None:
        """End it: it finishes its line first."""
        self._closing = True
        self._asked.write_eof()
        try:
            await asyncio.wait_for(self._reading, ANSWER_SECONDS)
        except TimeoutError:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)

    async def _read(self) -> None:
        try:
            while line := await self._answers.readline():
                answer = self._waiting.popleft()
                if not answer.done():  # else whoever asked waits no longer
                    answer.set_result(line)
        except (OSError, ValueError, IndexError) as error:  # it broke a line off, or says what nobody asked
            logger.error("The process that looks at answers said what it should not: %r", error)
        finally:
            self.ended = True
            if not self._closing:
                logger.error("The process that looks at answers ended, and is started again.")
                self.process.kill()
            for answer in self._waiting:
                if not answer.done():
                    answer.set_exception(ConnectionResetError())
            self._asked.close()
            await asyncio.to_thread(self.process.wait)


def main() -> None:
    """Look at the text of each line of the standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        text, sentences = json.loads(line)
        answer: dict[str, Any]
        try:
            insults = packaged_insults().scores([sentences])[0] if sentences else 0.0
            answer = {"found": found_within(text), "insults": insults}
        except LoraOpsError as error:  # weights that are missing or others
            answer = {"error": str(error)}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
