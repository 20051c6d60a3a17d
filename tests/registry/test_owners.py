"""owners.yaml: who answers for a tenant, and what is refused before anybody relies on it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.registry.owners import Owners, add_key, load_owners

REPOSITORY = Path(__file__).parents[2]

TEAM = """
default:
  team: Platform
  contacts: [ml@example.com]
  escalation: [oncall@example.com]
  review_cadence_days: 90
  people:
    - {id: ana, name: Ana, email: ana@example.com, roles: [approver]}
    - {id: ben, name: Ben, email: ben@example.com, roles: [approver]}
"""


def owners_of(folder: Path, text: str) -> Owners:
    path = folder / "owners.yaml"
    path.write_text(text)
    return load_owners(path)


def test_the_repository_names_owners_for_each_of_its_tenants() -> None:
    owners = load_owners(REPOSITORY / "owners.yaml")
    assert {"finance", "healthcare", "media", "publishing"} <= set(owners.tenants)


def test_a_tenant_without_an_entry_has_the_default_owners(tmp_path: Path) -> None:
    assert owners_of(tmp_path, TEAM).team("legal").team == "Platform"


@pytest.mark.parametrize("name", ["ana", "ANA", " ana@example.com ", "Ana@Example.com"])
def test_a_person_is_known_by_id_and_by_address_in_any_case(tmp_path: Path, name: str) -> None:
    person = owners_of(tmp_path, TEAM).default.person(name)
    assert person is not None
    assert person.id == "ana"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("roles: [approver]", "roles: [aprover]", "roles"),
        ("[approver]}\n    - {id: ben", "[reviewer]}\n    - {id: ben", "needs 2 approvers"),
        ("id: ben", "id: ana", "stands for two people"),
        ("email: ben@example.com", "email: ANA@example.com", "stands for two people"),
        ("cadence_days: 90", "cadence_days: 0", "review_cadence_days"),
        ("contacts: [ml@example.com]", "contacts: []", "contacts"),
        ("contacts: [ml@example.com]", "contacts: [nobody]", "contacts"),
        ("team: Platform", "team: Platform\n  colour: red", "colour"),
        ("default:", "standard:", "default"),
        ("contacts: [ml", "contacts: [[ml", "not valid YAML"),
    ],
)
def test_a_slip_is_refused_in_one_sentence_that_names_it(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(LoraOpsError, match="owners.yaml") as caught:
        owners_of(tmp_path, TEAM.replace(old, new, 1))
    assert says in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="Cannot read .*owners.yaml"):
        load_owners(tmp_path / "owners.yaml")


def test_a_person_is_known_under_each_of_their_logins(owners: Owners) -> None:
    person = owners.default.person("ANA.silva")
    assert person is not None and person.id == "ana"


# SSH keys.

KEYS = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHdGqDWVVswBqEkMUO8QprVATus3BIusIRJLytHSwBkA ana@laptop",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB3I2gfmv3TqQX5Vh1c1mKyHk0F0oE0kq8gwqXqJc1dW ben@laptop",
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with this repository's owners.yaml and two public keys, `0.pub` and `1.pub`."""
    shutil.copy(REPOSITORY / "owners.yaml", tmp_path)
    for place, key in enumerate(KEYS):
        (tmp_path / f"{place}.pub").write_text(key + "\n")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def test_add_key_changes_one_line_of_owners_yaml(repository: Path) -> None:
    path = repository / "owners.yaml"
    before = path.read_text().splitlines()
    assert add_key(path, "Ben.Okafor@example.com", repository / "0.pub").startswith("SHA256:")
    changed = [line for line in path.read_text().splitlines() if line not in before]
    assert len(changed) == 1 and "id: ben.okafor" in changed[0]
    person = load_owners(path).team("finance").person("ben.okafor")
    assert person is not None and person.keys == (KEYS[0],)
    again = path.read_text()
    add_key(path, "ben.okafor", repository / "0.pub")
    assert path.read_text() == again


def test_add_key_refuses_a_key_of_somebody_else(repository: Path) -> None:
    path = repository / "owners.yaml"
    add_key(path, "ben.okafor", repository / "0.pub")
    before = path.read_text()
    with pytest.raises(LoraOpsError, match="owners.yaml is unchanged: .*one SSH key stands for two people"):
        add_key(path, "chen.wei", repository / "0.pub")
    assert path.read_text() == before and not (repository / ".owners.yaml").exists()


@pytest.mark.parametrize(
    ("person", "file", "says"),
    [
        ("nobody", "0.pub", "names nobody 'nobody' \\(people: ana.silva, ben.okafor"),
        ("ben.okafor", "none.pub", "none.pub: No such file"),
        ("ben.okafor", "pipe", "pipe: this is a pipe or a device, and no file"),
        ("ben.okafor", "owners.yaml", "owners.yaml: an SSH public key is one line"),
    ],
)
def test_add_key_names_what_is_wrong(repository: Path, person: str, file: str, says: str) -> None:
    before = (repository / "owners.yaml").read_text()
    with pytest.raises(LoraOpsError, match=says):
        add_key(repository / "owners.yaml", person, repository / file)
    assert (repository / "owners.yaml").read_text() == before


def test_weak_key_is_not_added_and_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A weak key of one team must not keep another team from revoking a version."""
    path = tmp_path / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-C", "ana", "-f", path], check=True
    )
    line = path.with_suffix(".pub").read_text().strip()
    text = TEAM.replace("email: ana@example.com,", f"email: ana@example.com, keys: ['{line}'],")
    assert owners_of(tmp_path, text).default.people[0].keys == (line,)
    assert "owners.yaml: ana has an RSA key of 2048 bits" in caplog.text
    owners_of(tmp_path, TEAM)
    with pytest.raises(LoraOpsError, match="owners.yaml is unchanged: .*key.pub is an RSA key of 2048 bits"):
        add_key(tmp_path / "owners.yaml", "ana", path.with_suffix(".pub"))
    assert (tmp_path / "owners.yaml").read_text() == TEAM


def test_owners_that_are_not_utf8_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "owners.yaml").write_bytes(TEAM.replace("Ana", "Añ").encode("latin-1"))
    with pytest.raises(LoraOpsError, match="owners.yaml is not UTF-8 .*: save it as UTF-8"):
        load_owners(tmp_path / "owners.yaml")


def test_owners_text_is_the_file_or_reads_as_the_same(tmp_path: Path) -> None:
    read = owners_of(tmp_path, "# who\n" + TEAM)
    assert read.text == "# who\n" + TEAM
    made = Owners(default=read.default)
    assert owners_of(tmp_path, made.text).default == read.default
