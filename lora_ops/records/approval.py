"""Approvals: what a person signs, and what the record of a version shows of it."""

from pydantic import Field

from lora_ops.records.record import Record, Sha256


class ApprovalStatement(Record):
    """What an approver signs (as JSON with sorted keys and no spaces): who agrees to what, having seen what."""

    schema_version: int = 1
    step: str = "production"
    adapter: str
    content_digest: Sha256
    evidence: dict[str, Sha256] = Field(description="digest of the document that was seen, by kind")
    owners_sha256: Sha256 = Field(description="of owners.yaml, which said who may approve")
    person: str
    reason: str
    at: str
    expires_at: str


class Approval(Record):
    """One person's agreement to production, and whether it counts now."""

    person: str
    roles: list[str]
    reason: str
    at: str
    key: str | None = Field(None, description="fingerprint of the SSH key that signed it; None: unsigned")
    void: str | None = Field(None, description="why it doesn't count; None: it counts")
