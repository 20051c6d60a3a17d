#!/usr/bin/env python3
"""Post a Markdown file on the pull request, over the comment that an earlier run posted.

Usage: .ci/comment.py FILE

Knows GitHub by $GITHUB_REPOSITORY (with $GITHUB_TOKEN and $PULL_REQUEST) and GitLab by $CI_MERGE_REQUEST_IID
(with $GITLAB_TOKEN). It needs nothing but Python: the job that may write installs nothing.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

LONGEST = 60_000  # GitHub takes 65,536 characters
MARK = "<!-- lora-ops gates -->"


def call(method: str, url: str, headers: dict[str, str], body: str | None = None) -> Any:
    """Send one request and return its JSON."""
    data = None if body is None else json.dumps({"body": body}).encode()
    headers = {**headers, "content-type": "application/json", "user-agent": "lora-ops"}
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def main() -> None:
    """Find the comment that has the mark, and write it again; else a new one."""
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    if len(text) > LONGEST:
        text = text[:LONGEST].rpartition("\n")[0] + "\n\nThe rest is in the job's artifact.\n"
    if not text.startswith(MARK):
        text = f"{MARK}\n{text}"
    if "CI_MERGE_REQUEST_IID" in os.environ:
        api, project = os.environ["CI_API_V4_URL"], os.environ["CI_PROJECT_ID"]
        notes = f"{api}/projects/{project}/merge_requests/{int(os.environ['CI_MERGE_REQUEST_IID'])}/notes"
        edited, method = notes, "PUT"
        headers = {"private-token": os.environ["GITLAB_TOKEN"]}
    else:
        issues = f"{os.environ['GITHUB_API_URL']}/repos/{os.environ['GITHUB_REPOSITORY']}/issues"
        notes, edited = f"{issues}/{int(os.environ['PULL_REQUEST'])}/comments", f"{issues}/comments"
        method, headers = "PATCH", {"authorization": f"Bearer {os.environ['GITHUB_TOKEN']}"}
    for page in range(1, 100):
        found = call("GET", f"{notes}?per_page=100&page={page}", headers)
        for note in found:
            if note["body"].startswith(MARK) and note.get("user", {}).get("type", "Bot") == "Bot":
                call(method, f"{edited}/{note['id']}", headers, text)
                return
        if len(found) < 100:
            break
    call("POST", notes, headers, text)


if __name__ == "__main__":
    main()
