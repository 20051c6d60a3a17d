"""As many gateways as their backlog of tokens needs: KEDA's ScaledObject, and its calibration.

A prompt of 4,000 tokens and one of 20 are one request each, so requests say little of the work that waits. The
backlog is counted in tokens instead, and each kind of token in the seconds that one replica needs for it.
"""

import io
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from lora_ops.costs.usage import UsedEvent
from lora_ops.errors import LoraOpsError
from lora_ops.line_files import line_files, read_line_files
from lora_ops.settings.autoscaling import AutoscalingSettings
from lora_ops.windows import Window

FILE = Path("deploy/kubernetes/scaledobject.yaml")
FAILURES = 3
"""Polls without an answer of Prometheus until the fallback counts."""
LEAST_EVENTS = 50
HEADER = "# Made by `lora-ops autoscaling write` from `autoscaling` of params.yaml: change it there.\n"


class Throughput(NamedTuple):
    """What one replica works off, as the event log shows it.

    Attributes:
        prefill, decode: tokens a second that are read, and that are written.
        explained: share of the variance of requests' device time that both explain (R squared).
        requests: that it rests on.
    """

    prefill: float
    decode: float
    explained: float
    requests: int


def query(settings: AutoscalingSettings) -> str:
    """Return in PromQL the seconds that one replica would need for what waits and runs at all replicas."""
    where = f"{{{settings.selector}}}" if settings.selector else ""
    return (
        f"sum(lora_ops_backlog_prompt_tokens{where}) / {settings.prefill_tokens_per_second:g} + "
        f"sum(lora_ops_backlog_generated_tokens{where}) / {settings.decode_tokens_per_second:g}"
    )


def scaled_object(settings: AutoscalingSettings) -> dict[str, Any]:
    """Return KEDA's ScaledObject (keda.sh/v1alpha1).

    The number of replicas is the backlog divided by `backlog_seconds`, rounded up. A Prometheus that has no
    such series is a failure and not a backlog of nothing (`ignoreNullValues`): a wrong selector must not scale
    everything down. Only with `AverageValue` does KEDA fall back.
    """
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": settings.deployment, "namespace": settings.namespace},
        "spec": {
            "scaleTargetRef": {"name": settings.deployment},
            "minReplicaCount": settings.min_replicas,
            "maxReplicaCount": settings.max_replicas,
            "pollingInterval": settings.poll_seconds,
            "fallback": {"failureThreshold": FAILURES, "replicas": settings.fallback_replicas},
            "advanced": {
                "horizontalPodAutoscalerConfig": {
                    "behavior": {
                        "scaleDown": {"stabilizationWindowSeconds": settings.down_after_seconds},
                        "scaleUp": {"stabilizationWindowSeconds": 0},
                    }
                }
            },
            "triggers": [
                {
                    "type": "prometheus",
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": settings.prometheus,
                        "query": query(settings),
                        "threshold": f"{settings.backlog_seconds:g}",
                        "ignoreNullValues": "false",
                    },
                }
            ],
        },
    }


def as_yaml(settings: AutoscalingSettings) -> str:
    """Return the ScaledObject as its file holds it."""
    from ruamel.yaml import YAML

    yaml, text = YAML(), io.StringIO()
    yaml.width = 4096  # a query stays on its line
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(scaled_object(settings), text)
    return HEADER + text.getvalue()


def throughput(folder: Path, window: Window) -> Throughput:
    """Measure how many tokens a second one replica reads and writes, from the device time of its requests.

    Non-negative least squares (Lawson and Hanson 1974) of device seconds on tokens that were read and written.
    A request's device time is its share of steps in which others were, so this is the throughput under the
    load of the window: a gateway that answers one request at a time could do more.

    Args:
        folder: `.serving/events` of the gateways.
        window: what counts.

    Raises:
        LoraOpsError: too few requests, or their device time says nothing of one kind of token.
    """
    import numpy as np
    from scipy.optimize import nnls

    start, end = (datetime.isoformat(moment) for moment in (window.start, window.end))
    where = (
        f"status = 200 AND device_seconds BETWEEN 0 AND 1e9 AND prompt_tokens > 0 AND generated_tokens > 0 "
        f"AND time >= TIMESTAMPTZ '{start}' AND time < TIMESTAMPTZ '{end}'"
    )
    there = line_files(folder, "events")
    events = read_line_files(folder, "events", UsedEvent, where) if there else None
    if events is None or len(events) < LEAST_EVENTS:
        count = 0 if events is None else len(events)
        raise LoraOpsError(
            f"{count} answered requests in {folder} from {window.text} are too few: {LEAST_EVENTS} of "
            "different lengths are needed."
        )
    tokens = events[["prompt_tokens", "generated_tokens"]].to_numpy(dtype=float)
    seconds = events["device_seconds"].to_numpy(dtype=float)
    (read, wrote), _ = nnls(tokens, seconds)
    if min(read, wrote) <= 0:
        what = "reading" if read <= wrote else "writing"
        raise LoraOpsError(
            f"The device time of {len(events)} requests doesn't tell what {what} a token costs: ask prompts "
            "and answers of more different lengths."
        )
    left = float(((seconds - tokens @ np.array([read, wrote])) ** 2).sum())
    spread = float(((seconds - seconds.mean()) ** 2).sum())
    return Throughput(1 / read, 1 / wrote, 1 - left / spread if spread else 1.0, len(events))
