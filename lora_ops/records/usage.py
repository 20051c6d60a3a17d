"""A line of a gateway's usage log: when it was up, and which adapters were in its memory."""

import uuid
from datetime import datetime
from typing import Literal

from pydantic import Field

from lora_ops.records.record import Record

UsageKind = Literal["start", "heartbeat", "stop", "load", "held", "evict", "unload", "background"]


class UsageLine(Record):
    """One thing that happened in a gateway; counters are those of this run of it, and never go back.

    Attributes:
        gateway: this run of the gateway; another start is another one.
        number: of the line in this run, from 0; one that is missing was lost.
        kind: start, heartbeat, stop: of the gateway. load, evict, unload: of an adapter; an evicted one made
            room for another. held: it is still in memory. background: an answer in the background has ended,
            such as a copy for a version in shadow.
        uptime_seconds: since the gateway started, by a clock that nobody sets.
        heartbeat_seconds: between two heartbeats at most.
        busy_seconds: of them, those in which the engine answered or loaded anything.
        device: what the engine computes on.
        devices: how many of them work together.
        adapter: which; None: it is about the gateway, or the base model answered.
        bytes: of memory, that the adapter takes.
        used_seconds: in which anything was answered with the adapter.
        load_seconds: that its load took.
        device_seconds, prompt_tokens, generated_tokens: of the answer.
    """

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    time: datetime
    gateway: str
    number: int
    kind: UsageKind
    uptime_seconds: float
    heartbeat_seconds: float
    busy_seconds: float
    device: Literal["cpu", "gpu"]
    devices: float
    adapter: str | None = None
    digest: str | None = None
    bytes: int | None = None
    used_seconds: float | None = None
    load_seconds: float | None = None
    device_seconds: float | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
