"""Which gateways run here, and whether each of them answers with a version before a route moves to it.

A server behind a gateway may say that an adapter is loaded and fail at its first request (vllm#13698). So one
real request, for the version by its name, comes before users do.
"""

import asyncio
import fcntl
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from lora_ops.errors import disk_reason
from lora_ops.escaping import shortened
from lora_ops.folders import make_folder
from lora_ops.settings.rollout import ProbeSettings

logger = logging.getLogger(__name__)

FOLDER = "gateways"  # in `.serving`
LONGEST_ADDRESS = 300
LARGEST_ANSWER = 64 * 1024
PROMPT = "Hello"
PROBE = "x-lora-ops-probe"
"""The header of a probe: nobody waits for its answer, so that it is no request of the version's evidence."""


@contextmanager
def announced(folder: Path, host: str, port: int) -> Iterator[None]:
    """Let controllers find a gateway while the block runs; the system ends that when this process dies.

    Args:
        folder: `.serving` of the gateway.
        host, port: where it listens.
    """
    path, lock = folder / FOLDER / f"{uuid.uuid4().hex}.address", None
    new = path.with_suffix(".new")
    try:
        make_folder(path.parent)
        lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, _address(host, port).encode())
        new.rename(path)  # with its lock, so that nobody reads it without
    except OSError as error:  # clients come first
        logger.warning("No rollout finds this gateway: %s can't be written (%s).", path, disk_reason(error))
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


def addresses(folder: Path) -> list[str]:
    """Return where the gateways answer that run with this `.serving` on this machine."""
    return [found for path in sorted((folder / FOLDER).glob("*.address")) if (found := _read(path))]


def _read(path: Path) -> str | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe has no end
    except OSError:  # it ended just now
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(file, LONGEST_ADDRESS).decode(errors="replace") or None
    except OSError:
        return None
    finally:
        os.close(file)
    with suppress(OSError):  # nobody holds it: its gateway was killed
        path.unlink()
    return None


def _address(host: str, port: int) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:  # it listens on each address of this machine
        address = ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://{f'[{address}]' if address.version == 6 else address}:{port}"


class GatewayProbe:
    """Asks every gateway for a version by its name.

    Args:
        folder: `.serving` of the gateways on this machine.
        settings: which other gateways are asked, with which key, and how long.
    """

    def __init__(self, folder: Path, settings: ProbeSettings) -> None:
        self._folder = folder
        self._settings = settings

    def unanswered(self, adapter: str, digest: str) -> str | None:
        """Return why users must not be sent to a version yet, in words; None: every gateway answers with it."""
        here = addresses(self._folder)
        there = [one for one in self._settings.gateways if one not in here]
        if not here and not there:
            if not self._settings.required:
                return None
            return (
                f"no gateway runs with {self._folder}, so that nobody knows whether one can answer with "
                f"{adapter}: start one (`lora-ops serve`), or name one in rollout.probe.gateways"
            )
        found = asyncio.run(self._all(here, there, adapter, digest))
        return next((one for one in found if one), None)

    async def _all(
        self, here: Sequence[str], there: Sequence[str], adapter: str, digest: str
    ) -> list[str | None]:
        asked = [self._asked(url, adapter, digest, is_here=url in here) for url in (*here, *there)]
        return list(await asyncio.gather(*asked))

    async def _asked(self, url: str, adapter: str, digest: str, *, is_here: bool) -> str | None:
        """Return what is wrong with one gateway's answer, or None."""
        import httpx

        key = os.environ.get(self._settings.api_key_env)
        headers = {PROBE: "1"} | ({"authorization": f"Bearer {key}"} if key else {})
        body = {"model": adapter, "prompt": PROMPT, "max_tokens": 1}
        content, seconds = bytearray(), self._settings.seconds
        try:
            # httpx's own limit is of each read. A proxy of the environment doesn't reach this machine.
            async with (
                asyncio.timeout(seconds),
                httpx.AsyncClient(headers=headers, timeout=seconds, trust_env=not is_here) as client,
                client.stream("POST", f"{url}/v1/completions", json=body) as answer,
            ):
                async for part in answer.aiter_bytes():
                    content += part
                    if len(content) > LARGEST_ANSWER:
                        return f"{url} sends what is no answer of {adapter}"
        except TimeoutError:
            return f"{url} did not answer with {adapter} within {seconds:g} seconds"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return f"{url} can't be asked for {adapter} ({str(error) or type(error).__name__})"
        if answer.status_code == 401:
            return (
                f"{url} wants a key: put one of the tenant into the environment variable "
                f"{self._settings.api_key_env} (`lora-ops keys create`)"
            )
        if answer.status_code != 200:
            said = shortened(content.decode(errors="replace"))
            return f"{url} does not answer with {adapter} ({answer.status_code}: {said})"
        if answer.headers.get("x-lora-ops-digest") != digest:
            return f"{url} has other content as {adapter}, or is no gateway of lora-ops"
        return None
