"""Whether W&B answers, as seen from this machine."""

import pytest

from lora_ops.tracking.client import server_answers


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_server_answers_no_behind_a_proxy_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SOCKS proxy, for which httpx lacks a package, was a traceback on stderr."""
    monkeypatch.setenv("ALL_PROXY", "socks5://localhost:9")
    assert not server_answers("http://localhost:9")
