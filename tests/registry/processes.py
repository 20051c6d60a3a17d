"""Real processes for the tests: forked, so that a hundred of them take seconds, and killed where we say."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from lora_ops.errors import LoraOpsError

DONE, REFUSED, KILLED = 0, 2, -signal.SIGKILL


def start(action: Callable[[], object], *, kill_at: int | None = None) -> int:
    """Run `action` in a new process and give its id.

    Args:
        action: opens its own registry; a LoraOpsError makes the process exit with `REFUSED`.
        kill_at: SIGKILL when the registry's code makes this many calls into C: every statement of SQLite,
            every write, rename, sync and unlink is one.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        if kill_at is not None:
            _die_at(kill_at)
        action()
        code = DONE
    except LoraOpsError as error:
        code = REFUSED
        sys.stderr.write(f"refused: {error}\n")
    except BaseException:  # noqa: BLE001 - a test process says what went wrong and ends
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(process: int) -> int:
    """How a process ended: `DONE`, `REFUSED`, `KILLED`, or 1 for anything else."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(action: Callable[[], object], *, kill_at: int | None = None) -> int:
    """Start and wait."""
    return wait(start(action, kill_at=kill_at))


def _die_at(calls: int) -> None:
    left = calls

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if event == "c_call" and "lora_ops/registry" in frame.f_code.co_filename:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
