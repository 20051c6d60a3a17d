"""Weights that a request needs and that are in the archive: brought back off the request's path."""

import logging
import threading
from collections.abc import Callable

from lora_ops.errors import LoraOpsError, Unavailable

PATIENCE_SECONDS = 2.0
"""How long a load waits; most archives give an adapter back in less. Then the client is told to ask again."""
MOST_RETURNING = 4
"""Returns under way at once: each holds a thread, for ever where the archive's store hangs."""
logger = logging.getLogger(__name__)


class ReturningWeights:
    """Brings the weights of a version back, each version once at a time, however many ask for it.

    Args:
        bring: brings the weights of a version (`finance@1`) back; runs in a thread of its own.
        patience: seconds that a caller waits for it.
    """

    def __init__(self, bring: Callable[[str], None], patience: float = PATIENCE_SECONDS) -> None:
        self._bring = bring
        self._patience = patience
        self._lock = threading.Lock()
        self._under_way: dict[str, _Return] = {}

    def wait(self, version: str) -> None:
        """Wait until a version's weights are back.

        Raises:
            Unavailable: it takes longer, and goes on; or too many others are under way, and it was not begun.
            LoraOpsError: they can't be brought back; the next caller tries again.
        """
        with self._lock:
            one = self._under_way.get(version)
            if one is None:
                if len(self._under_way) >= MOST_RETURNING:  # no caller waits for a store that may hang
                    raise Unavailable(
                        f"The weights of {version} are in the archive. Those of {MOST_RETURNING} other "
                        "versions are being brought back first: ask again soon."
                    )
                one = self._under_way[version] = _Return()
                # A store that never answers must not keep the gateway from stopping.
                threading.Thread(target=self._run, args=(version, one), name="archive", daemon=True).start()
        if not one.is_over.wait(self._patience):
            raise Unavailable(
                f"The weights of {version} are being brought back from the archive: ask again soon."
            )
        if one.error:
            raise one.error

    def _run(self, version: str, one: "_Return") -> None:
        try:
            self._bring(version)
            logger.info("The weights of %s are back from the archive.", version)
        except LoraOpsError as error:
            one.error = error
        except Exception as error:
            logger.exception("The weights of %s could not be brought back", version)
            one.error = Unavailable(
                f"The weights of {version} could not be brought back ({type(error).__name__})."
            )
        finally:
            with self._lock:
                del self._under_way[version]
            one.is_over.set()


class _Return:
    """One return that is under way; `error` counts once it is over."""

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self.error: LoraOpsError | None = None
