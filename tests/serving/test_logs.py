"""The gateway's log."""

import json
import logging
import subprocess
import sys
import textwrap
import threading

from lora_ops.serving.logs import JsonLines, OncePerMinute, request_id


def test_a_log_line_within_a_request_carries_its_id() -> None:
    token = request_id.set("r-9")
    record = logging.LogRecord("lora_ops", logging.ERROR, "", 0, "it %s\n", ("broke",), None)
    line = JsonLines().format(record)
    request_id.reset(token)
    assert "\n" not in line
    assert json.loads(line)["request_id"] == "r-9" and json.loads(line)["message"] == "it broke\n"


def test_a_log_line_shows_what_nobody_sees() -> None:
    """C1 characters begin a terminal's commands, and others break a line or turn what follows."""
    unseen = "\x85\x9b31m\u2028\u2029\u202e\u2066\U000e0041\u200b\ud800"
    record = logging.LogRecord("lora_ops", logging.INFO, "", 0, "GET /%s 日本 é", (unseen,), None)
    record.fields = {"path": unseen}
    line = JsonLines().format(record)
    shown = json.loads(line)
    assert shown["message"] == f"GET /{unseen} 日本 é" and shown["path"] == unseen
    assert not set(unseen) & set(line) - set("31m") and "日本 é" in line


def test_once_per_minute_reports_at_once_and_then_sums_up() -> None:
    now, reports = 0.0, []
    event = OncePerMinute(reports.append, clock=lambda: now)
    for second in range(150):
        now = float(second)
        event()
    assert reports == [1, 60, 60]


def start(script: str) -> subprocess.Popen[str]:
    """A process with both of its outputs in pipes."""
    setup = "import logging\nfrom lora_ops.serving.logs import log_as_json, lost_lines\nlog_as_json()\n"
    return subprocess.Popen(
        [sys.executable, "-c", setup + textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line of stdout, or the end of the process if it hangs."""
    timer = threading.Timer(60, process.kill)
    timer.start()
    assert process.stdout
    line = process.stdout.readline()
    timer.cancel()
    return line


def test_log_that_nobody_reads_says_what_it_lost() -> None:
    process = start("""
        for number in range(12_000):
            logging.getLogger("test").info("%d %s", number, "x" * 1000)
        print(lost_lines(), flush=True)
        input()
    """)
    lost = int(read_line(process))
    assert 3_000 < lost < 12_000
    assert process.stderr
    lines = []
    while not lines or "lost" not in lines[-1]["message"]:
        lines.append(json.loads(process.stderr.readline()))
    assert len(lines) == 12_000 - lost + 1
    assert lines[-1]["message"].startswith(f"{lost} lines of this log were lost")
    process.communicate("\n", timeout=60)


def test_log_that_nobody_reads_does_not_keep_the_process() -> None:
    process = start("""
        for number in range(1000):
            logging.getLogger("test").info("x" * 1000)
        print("done", flush=True)
    """)
    assert read_line(process) == "done\n"
    assert process.wait(60) == 0


def test_log_is_whole_at_the_end_of_the_process() -> None:
    process = start("""
        import warnings
        from transformers.utils import logging as transformers_logging
        for number in range(1000):
            logging.getLogger("test").info("%d", number)
        transformers_logging.get_logger("transformers.test").warning("theirs")
        warnings.warn("careful")
        logging.getLogger("test").info("\\udcff")
    """)
    _, errors = process.communicate(timeout=60)
    messages = [json.loads(line)["message"] for line in errors.splitlines()]
    assert messages[:1000] == [str(number) for number in range(1000)]
    assert messages[1000] == "theirs" and "careful" in messages[1001] and len(messages) == 1003
