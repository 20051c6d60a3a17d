"""owners.yaml: who answers for a tenant, and what is refused before anybody relies on it."""

from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.registry.owners import Owners, load_owners

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
    assert {"finance", "healthcare", "media"} <= set(owners.tenants)


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
