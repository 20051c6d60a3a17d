"""Fork each `lora-ops` instead of starting it: at a start, its imports take most of its time.

This server imports packages of others, and nothing of lora_ops. For each command it forks a process that takes
the caller's arguments, folder, environment and streams, imports lora_ops and runs its `main`, as the console
script does. Exit code, streams and files are those of a process of its own. What a test says of a process's
start, or of its imports, limits, parents or death, needs a process that was started.

Run with the path of its socket. It ends when its standard input does.
"""

import gc
import importlib
import io
import json
import os
import selectors
import socket
import sys
from contextlib import suppress
from typing import Any

# What commands import, by their first words; the other words need no more than the first line.
OFTEN = ("pydantic", "typer", "rich.table", "ruamel.yaml", "numpy", "pandas", "cryptography.x509")
EVALUATION = ("scipy.stats", "sklearn.metrics", "nltk", "sacrebleu", "rouge_score.rouge_scorer")
PACKAGES = {
    "register": (*EVALUATION, "wandb"),
    "tenant": ("great_expectations",),
}
# An interpreter and those packages read them at a start. Stages of DVC look for it among their parents.
READ_AT_START = ("PYTHON", "LANG", "LC_", "TZ", "OMP_", "MKL_", "HF_", "GX_", "LD_", "DVC_STAGE", "_LORA_OPS")
LARGEST = 1 << 20


def serve(listener: socket.socket) -> dict[str, Any]:
    """Fork a process for each request. Returns in that process alone, with what was asked of it."""
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type] # as `lora-ops` does first
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if 0 in ready:
                sys.exit()
            channel, _ = listener.accept()
            with channel, suppress(ConnectionError):
                if asked := _answer(channel):
                    listener.close()
                    return asked
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _answer(channel: socket.socket) -> dict[str, Any] | None:
    """Fork what the channel asks for; return it in the process that does it, and None in the server."""
    content, streams, _, _ = socket.recv_fds(channel, LARGEST, 3)
    if not content:  # the caller was killed
        return None
    try:
        asked = json.loads(content)
        if _at_start(asked["environment"]) != _at_start(os.environ):
            channel.send(b"start")
            return None
        for name in (*OFTEN, *PACKAGES.get(next(iter(asked["words"]), ""), ())):
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # a child's first collection would copy every page
        if os.fork():
            return None
        command = os.fork()
        if command:
            for one in streams:  # so that whoever reads them sees their end
                os.close(one)
            code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
            with suppress(OSError):
                channel.send(str(code).encode())
            os._exit(0)
        _become(asked, streams)
        return asked
    finally:
        for one in streams:
            with suppress(OSError):
                os.close(one)


def _at_start(environment: Any) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}


def _become(asked: dict[str, Any], streams: list[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(asked["folder"])
    os.umask(asked["umask"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["lora-ops", *asked["words"]]
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115 - for the whole run
    sys.stdout = sys.__stdout__ = _text(1, sys.stdout)
    sys.stderr = sys.__stderr__ = _text(2, sys.stderr)


def _text(number: int, like: Any) -> io.TextIOWrapper:
    """Return a stream to a descriptor, as this process's own one of that number was made at its start."""
    raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
    return io.TextIOWrapper(raw, like.encoding, like.errors, line_buffering=like.line_buffering)


if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(sys.argv[1])
        listening.listen(100)
        print("listens", flush=True)
        serve(listening)
    from lora_ops.cli import main

    sys.exit(main())
