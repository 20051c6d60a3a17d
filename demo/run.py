#!/usr/bin/env python3
"""Show a rollout from end to end, with the commands that a team runs: `make demo`.

Usage: demo/run.py [--keep]

Version 1 of media is trained on half of the rows, and people bring it to production by hand. Version 2 is the
package of `make repro`, and goes through shadow and canary to production. Version 3 was trained on wrong
labels. It passes every check that looks at its own data, and is caught in its shadow. All of it is in .demo/: a
registry of its own, throw-away keys, and sample reviews, which no other registry takes. Held-out rows are the
traffic. With --keep the gateway stays until Ctrl-C.
"""

import contextlib
import csv
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from lora_ops.detectors.identifiers import find_identifiers
from lora_ops.errors import LoraOpsError
from lora_ops.processes import end_with_parent, only_one

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
HERE = FOLDER / "repository"
TENANT = "media"
AUTHOR, REVIEWERS, OPERATOR = "hugo.martin", ("iris.tanaka", "jonas.weber"), "jonas.weber"
OTHERS = ("LORA_OPS_ROOT", "LORA_OPS_REGISTRY", "LORA_OPS_ACTOR", "LORA_OPS_SIGNING_KEY")
ENV = {
    **{name: value for name, value in os.environ.items() if name not in OTHERS},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "XDG_CONFIG_HOME": str(FOLDER / "config"),  # private keys of the registry
    "WANDB_MODE": "offline",
    "HF_HUB_OFFLINE": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "COLUMNS": "110",
    # Two trainings run beside a gateway, and threads that wait for each other make each of them slow.
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
}
FIRST_PORT, PORTS = 8400, 50
ASKED_BY_NAME, USERS_AT_ONCE = 24, 8
SAID = set[str]()
LONGEST = 900.0  # seconds that one part of the story may take


def main() -> int:
    """Tell the whole story, and say where its pages are."""
    for needed in (ROOT / "packages" / TENANT / "manifest.json", ROOT / "models/base", ROOT / "dvc.lock"):
        if not needed.exists():
            raise LoraOpsError(f"There is no {needed.relative_to(ROOT)}: run `make repro` first.")
    began = time.monotonic()
    FOLDER.mkdir(exist_ok=True)
    with only_one(ROOT / ".serving/demo.lock", "showing the demo"):
        shutil.rmtree(FOLDER)
        tell(began)
    return 0


def tell(began: float) -> None:
    """Tell the story in an empty folder."""
    say("DEMO: everything is in .demo/. Its registry takes sample reviews; profiles/demo.yaml has its limits.")
    copy_repository(HERE)
    with training("version-1", "fewer") as first, training("version-3", "flipped") as third:
        make_keys()
        say(f"{TENANT}@1 is trained on half of the rows. People bring it to production by hand.")
        take_package(first)
        with gateway() as url:
            first_to_production(url)
            say(f"{TENANT}@2 is the package of `make repro`. A rollout brings it to production.")
            put_package(ROOT)
            make_ready(2)
            with controller():
                lora_ops("rollout", "start", f"{TENANT}@2", "--reason", "more rows", "--actor", OPERATOR)
                replay(2, 300)
                require(wait_for(2, "canary", "returned") == "canary", f"{TENANT}@2 is no worse on these rows")
                with users(url):
                    phase = wait_for(2, "ready", "returned")
                    if phase == "ready":
                        lora_ops("rollout", "status", f"{TENANT}@2")
                        approve(2)
                        phase = wait_for(2, "done", "returned")
                require(phase == "done", f"{TENANT}@2 is in production")
                say(f"{TENANT}@3 was trained on wrong labels, and its held-out rows have them, too.")
                take_package(third)
                make_ready(3)
                lora_ops("rollout", "start", f"{TENANT}@3", "--reason", "new labels", "--actor", OPERATOR)
                replay(3, 80)
                phase = wait_for(3, "returned", "canary", "ready")
                require(phase == "returned", f"{TENANT}@3 was caught in its shadow, before it answered anybody")
            lora_ops("rollout", "status", f"{TENANT}@3")
            lora_ops("registry", "status", TENANT)
            answered = ask(url, TENANT, range(5000, 5010))
            require(set(answered) == {f"{TENANT}@2"}, f"{TENANT}@2 answers everybody")
            keep_console(url)
            for number in (2, 3):
                lora_ops("rollout", "report", f"{TENANT}@{number}")
            say(f"It took {time.monotonic() - began:.0f} seconds. Pages:")
            for page in (FOLDER / "console.html", *sorted((HERE / "reports").glob("*/rollout/*/*.html"))):
                print(f"  {page.relative_to(ROOT)}")
            if "--keep" in sys.argv:
                print(f"  {url}/console until Ctrl-C", flush=True)
                with contextlib.suppress(KeyboardInterrupt):
                    signal.pause()


def say(text: str) -> None:
    """Print one sentence of the story."""
    print(f"\n== {text}", flush=True)


def require(holds: bool, what: str) -> None:
    """Say what is so now.

    Raises:
        LoraOpsError: it is not.
    """
    if not holds:
        raise LoraOpsError(f"This should be so, and isn't: {what}. .demo/*.log say what happened.")
    print(f"   -> {what}.", flush=True)


def lora_ops(*words: str, show: bool = True) -> str:
    """Run a command as a user does, and print it with what it says.

    Raises:
        LoraOpsError: it fails.
    """
    if show:
        print(f"$ lora-ops {shlex.join(words).replace(f'{FOLDER}/', '.demo/')}", flush=True)
    notes = words[0] == "registry" and words[1] != "status"  # sentences, and no table
    env = {**ENV, "COLUMNS": "4000" if notes else ENV["COLUMNS"]}
    done = subprocess.run(("lora-ops", *words), cwd=HERE, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoraOpsError(f"`lora-ops {' '.join(words)}` failed: {(done.stderr or done.stdout).strip()}")
    if show:
        for line in done.stdout.splitlines():
            if not (
                line.startswith("Note: ") and line in SAID
            ):  # such as which gates are looser, after each step
                print(
                    textwrap.fill(line, 112, initial_indent="  ", subsequent_indent="    ")
                    if notes
                    else f"  {line}"
                )
            SAID.add(line)
        sys.stdout.flush()
    return done.stdout


def copy_repository(target: Path) -> None:
    """Clone the repository with the edits of its files, and with the data and base model of `make repro`."""
    quiet("git", "clone", "--quiet", str(ROOT), str(target))
    changed = quiet("git", "-C", str(ROOT), "ls-files", "--modified", "--others", "--exclude-standard", "-z")
    for name in filter(None, changed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith((".demo/", "dvc.lock")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for name in ("data/raw", f"data/prepared/{TENANT}", "models/base", "reports/versions", f"reports/{TENANT}"):
        shutil.copytree(ROOT / name, target / name, copy_function=link, dirs_exist_ok=True)
    shutil.copy2(ROOT / "dvc.lock", target)
    shutil.copytree(ROOT / "packages" / TENANT, target / "packages" / TENANT)
    # What a first demo trained, a second one finds in DVC's cache.
    cache = quiet("dvc", "cache", "dir", cwd=ROOT).strip()
    quiet("dvc", "config", "--local", "cache.dir", str((ROOT / cache).resolve()), cwd=target)
    quiet("lora-ops", "profile", "demo", cwd=target)


def link(source: str, target: str) -> None:
    """Give a file a second name, or a copy on another file system; nothing in .demo writes into one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def quiet(*words: str, cwd: Path = ROOT) -> str:
    """Run a command and return what it prints.

    Raises:
        LoraOpsError: it fails.
    """
    done = subprocess.run(words, cwd=cwd, env=ENV, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoraOpsError(f"`{' '.join(words)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@contextlib.contextmanager
def background(name: str, *words: str, cwd: Path = HERE) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the background, which ends with this process; its output is in .demo/NAME.log."""
    with (FOLDER / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=cwd, env=ENV, stdout=log, stderr=subprocess.STDOUT, preexec_fn=end_with_parent
        )
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()


@contextlib.contextmanager
def training(name: str, *profiles: str) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    """Train, evaluate and package one more version in a copy of the repository, in the background."""
    target = FOLDER / name
    copy_repository(target)
    shutil.rmtree(target / "packages" / TENANT)
    for suite in (TENANT, "policy"):  # no gate of the demo reads what they answer to it, which takes a minute
        (target / f"suites/{suite}.yaml").unlink()
    for profile in profiles:
        shutil.copy2(target / "demo" / f"{profile}.yaml", target / "profiles")
        quiet("lora-ops", "profile", profile, cwd=target)
    with background(name, "dvc", "repro", f"package@{TENANT}", cwd=target) as process:
        yield target, process


def take_package(trained: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    """Wait for a training, and put its package where `lora-ops register` finds it.

    Raises:
        LoraOpsError: the training failed.
    """
    folder, process = trained
    print(f"   (waits for the training in .demo/{folder.name})", flush=True)
    if process.wait(LONGEST):
        raise LoraOpsError(f"The training failed: see .demo/{folder.name}.log.")
    put_package(folder)


def put_package(folder: Path) -> None:
    """Put the package of a repository where `lora-ops register` finds it."""
    shutil.rmtree(HERE / "packages" / TENANT)
    shutil.copytree(folder / "packages" / TENANT, HERE / "packages" / TENANT)


def make_keys() -> None:
    """Give the approvers throw-away keys."""
    (FOLDER / "keys").mkdir()
    for who in REVIEWERS:
        key = FOLDER / "keys" / who
        quiet("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", who, "-f", str(key))
        quiet("lora-ops", "owners", "add-key", who, f"{key}.pub", cwd=HERE)


@contextlib.contextmanager
def gateway() -> Iterator[str]:
    """Run the gateway on the next free port, and give its address once it is ready."""
    lora_ops_register()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    say(f"The gateway answers on {url}.")
    with background("gateway", "lora-ops", "serve", "--port", str(port)) as process:
        until = time.monotonic() + LONGEST
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > until:
                raise LoraOpsError("The gateway did not start: see .demo/gateway.log.")
            time.sleep(0.5)
        yield url


def free_port() -> int:
    """Return the first port from `FIRST_PORT` on that nobody listens on.

    Raises:
        LoraOpsError: all are taken.
    """
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                one.bind(("127.0.0.1", port))
                return port
    raise LoraOpsError(f"The ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are taken: end what listens there.")


def lora_ops_register() -> None:
    """Register the package that is there, as its author."""
    lora_ops("register", TENANT, "--actor", AUTHOR)


def first_to_production(url: str) -> None:
    """Bring version 1 to production by hand, on requests that ask for it by its name."""
    version = f"{TENANT}@1"
    file_offline_evidence(1)
    asked = 0
    for stage in ("shadow", "canary"):
        lora_ops("registry", "promote", version, stage, "--reason", "next", "--actor", OPERATOR)
        asked += ask(url, version, range(ASKED_BY_NAME)).total()
        wait_for_events(version, asked)
        lora_ops("registry", "file", version, stage, ".serving/events", "--actor", OPERATOR)
    approve(1)
    lora_ops("registry", "promote", version, "production", "--reason", "two agreed", "--actor", OPERATOR)


def wait_for_events(version: str, many: int) -> None:
    """Wait until the gateway has scored so many answers of a version, and written them down.

    Raises:
        LoraOpsError: it takes too long.
    """
    until, name = time.monotonic() + LONGEST, f'"adapter":"{version}"'
    while time.monotonic() < until:
        files = (HERE / ".serving/events").glob("events-*.jsonl")
        if sum(file.read_text(encoding="utf-8").count(name) for file in files) >= many:
            return
        time.sleep(0.5)
    raise LoraOpsError(f"The gateway wrote down less than {many} answers of {version}: see .demo/gateway.log.")


def make_ready(number: int) -> None:
    """Register a version, and file what a rollout needs before it begins."""
    lora_ops_register()
    file_offline_evidence(number)


def file_offline_evidence(number: int) -> None:
    """File two policy checks and the sample reviews of a version, both counted from its packaged answers."""
    version = f"{TENANT}@{number}"
    with (HERE / "packages" / TENANT / "answers.csv").open(newline="", encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    labels = {row["target"] for row in answers}
    shown = json.loads(lora_ops("registry", "show", version, "--json", show=False))
    about = {"adapter": version, "digest": shown["content_digest"]}
    write_lines(
        "policy.jsonl",
        [
            {**about, "check": check, "prompt": row["id"], "passed": passed}
            for row in answers
            for check, passed in (
                ("off_label", row["adapter"].strip() in labels),
                ("identifiers", not find_identifiers(row["adapter"])),
            )
        ],
    )
    lora_ops("registry", "file", version, "policy", "policy.jsonl", "--actor", OPERATOR)
    lora_ops("registry", "promote", version, "validated", "--reason", "beats its base", "--actor", OPERATOR)
    write_lines(
        "samples.jsonl",
        [
            {**about, "pair": row["id"], "annotator": who, "vote": vote(row), "sample": True}
            for row in answers[:40]
            for who in REVIEWERS
        ],
    )
    lora_ops("registry", "file", version, "human_evaluation", "samples.jsonl", "--actor", OPERATOR)


def vote(row: dict[str, str]) -> str:
    """Return a sample review: the answer that is right is the better one."""
    ours, theirs = (row[name].strip().lower() == row["target"].lower() for name in ("adapter", "base"))
    return "same" if ours == theirs else "adapter" if ours else "base"


def write_lines(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    (HERE / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def approve(number: int) -> None:
    """Let two people sign."""
    for who in REVIEWERS:
        words = ("--reason", "I read the evidence", "--actor", who, "--key", str(FOLDER / "keys" / who))
        lora_ops("registry", "approve", f"{TENANT}@{number}", *words)


@contextlib.contextmanager
def controller() -> Iterator[None]:
    """Let a controller look at the rollouts each second."""
    print("$ lora-ops rollout run &", flush=True)
    with background("controller", "lora-ops", "rollout", "run"):
        yield


def replay(number: int, many: int) -> None:
    """Ask production and the version in shadow the same held-out rows, at most so many."""
    wait_for(number, "shadow", mirrored=True)
    rows = [{"text": row["text"], "target": row["target"], "group": row["id"]} for row in held_out()[:many]]
    write_lines("rows.jsonl", rows)
    lora_ops("rollout", "replay", f"{TENANT}@{number}", "--rows", "rows.jsonl")
    lora_ops("rollout", "pairs", f"{TENANT}@{number}", "--replayed")


def held_out() -> list[dict[str, Any]]:
    """Return the held-out rows of `make repro`, in an order of their own."""
    lines = (HERE / "data/prepared" / TENANT / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    return rows


def ask(url: str, model: str, users: range) -> Counter[str]:
    """Let each user send one held-out row; return who answered how many."""
    rows = held_out()

    def one(user: int) -> str:
        body = {
            "model": model,
            "user": f"reader {user}",
            "max_tokens": 4,
            "messages": [{"role": "user", "content": rows[user % len(rows)]["text"]}],
        }
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
        return answer.headers.get("x-lora-ops-adapter", f"status {answer.status_code}")

    with ThreadPoolExecutor(USERS_AT_ONCE) as pool:
        return Counter(pool.map(one, users))


@contextlib.contextmanager
def users(url: str) -> Iterator[None]:
    """Let new users come all the time, and say who answered them."""
    going, answered = [True], Counter[str]()

    def come() -> None:
        first = 10_000
        while going:
            answered.update(ask(url, TENANT, range(first, first + 4 * USERS_AT_ONCE)))
            first += 4 * USERS_AT_ONCE

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(come)
        try:
            yield
        finally:
            going.clear()
            coming.result()
    said = ", ".join(f"{who} {many}" for who, many in sorted(answered.items()))
    print(f"   {answered.total()} users came; who answered: {said}", flush=True)


def wait_for(number: int, *phases: str, mirrored: bool = False) -> str:
    """Wait until a rollout is in one of these phases, say each change, and return the phase.

    Raises:
        LoraOpsError: it takes too long.
    """
    until, said = time.monotonic() + LONGEST, None
    while time.monotonic() < until:
        found = json.loads(lora_ops("rollout", "status", f"{TENANT}@{number}", "--json", show=False))
        now = (found["phase"], found["percent"])
        if now != said:
            share = f" {found['percent']:g} %" if found["percent"] else ""
            print(f"   {found['plan']['adapter']}: {found['phase']}{share}: {found['said']}", flush=True)
            said = now
        if found["phase"] in phases and (found["is_mirrored"] or not mirrored):
            return str(found["phase"])
        time.sleep(2)
    raise LoraOpsError(f"The rollout of {TENANT}@{number} stays: see .demo/controller.log.")


def keep_console(url: str) -> None:
    """Write the console as it is now into one file, which opens without a gateway."""
    page = httpx.get(f"{url}/console", timeout=30).text
    data = httpx.get(f"{url}/console/data", timeout=30).text.replace("<", "\\u003c")
    (FOLDER / "console.html").write_text(page.replace("\nrefresh();\n", f"\nshow({data});\n"), encoding="utf-8")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except LoraOpsError as error:
        sys.exit(f"demo: {error}")
