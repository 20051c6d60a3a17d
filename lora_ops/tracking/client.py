"""What the pipeline and the registry ask of W&B's client before it talks: the key, the server, the mode."""

import netrc
import os
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE = 3  # seconds that a stage waits to learn whether W&B answers


def has_api_key() -> bool:
    """Whether the client can log in: by the environment, or by what `wandb login` wrote into the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    paths = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for path in paths:
        try:
            login = netrc.netrc(path).authenticators(urlsplit(server_url()).netloc)
        except (OSError, netrc.NetrcParseError):
            continue
        if login and login[2]:
            return True
    return False


def server_url() -> str:
    """Where W&B is: `$WANDB_BASE_URL`, else what `wandb login --host` wrote, else W&B's own servers."""
    import wandb

    return str(wandb.setup().settings.base_url)


def server_answers(url: str) -> bool:
    """Whether a server answers at `url` within `PATIENCE` seconds; an answer of 500 and more is none.

    The client itself would try for two minutes and then raise. Nothing secret is sent, so certificates are left
    to the client; proxies of the environment are used as the client uses them.
    """
    import httpx

    answers: list[int] = []

    def ask() -> None:
        with suppress(Exception):  # a proxy of the environment may be an address, or need a package, that fails
            answers.append(httpx.get(url, timeout=PATIENCE, verify=False).status_code)

    # In a thread: looking up a name without a network may take longer than any of httpx's own limits.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return any(status < 500 for status in answers)


def tracking_mode() -> str:
    """`$WANDB_MODE` if it is set, else "online" when there is an API key and "offline" when there is none."""
    return os.environ.get("WANDB_MODE") or ("online" if has_api_key() else "offline")


def is_client_error(error: Exception) -> bool:
    """Whether W&B's client, or the network below it, raised `error`."""
    import requests

    # Some of the client's errors have no public name, so its own are known by their package.
    of_client = type(error).__module__.partition(".")[0] == "wandb"
    return of_client or isinstance(error, requests.RequestException | OSError | ValueError)
