"""The gateway's log."""

import json
import logging

from lora_ops.serving.logs import JsonLines, OncePerMinute, request_id


def test_a_log_line_within_a_request_carries_its_id() -> None:
    token = request_id.set("r-9")
    record = logging.LogRecord("lora_ops", logging.ERROR, "", 0, "it %s\n", ("broke",), None)
    line = JsonLines().format(record)
    request_id.reset(token)
    assert "\n" not in line
    assert json.loads(line)["request_id"] == "r-9" and json.loads(line)["message"] == "it broke\n"


def test_once_per_minute_reports_at_once_and_then_sums_up() -> None:
    now, reports = 0.0, []
    event = OncePerMinute(reports.append, clock=lambda: now)
    for second in range(150):
        now = float(second)
        event()
    assert reports == [1, 60, 60]
