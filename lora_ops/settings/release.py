"""`releases/TENANT@N.yaml`: what of a release only people know."""

from typing import Annotated

from pydantic import Field, StringConstraints

from lora_ops.settings.section import Section

Said = Annotated[str, StringConstraints(strip_whitespace=True, max_length=4000)]


class ReleaseFields(Section):
    """What people say of a version before it goes to production; none of it can be computed.

    The four of E-E-A-T are those of Google's Search Quality Rater Guidelines (section 3.4): whoever publishes
    what an adapter writes must be able to say them of its answers.
    """

    summary: Said = Field("", description="what changes for whoever reads the answers")
    known_limits: Said = Field(
        "", description="what it must not be used for, and where it is known to be wrong"
    )
    experience: Said = Field("", description="who with first-hand experience of the subject judged its answers")
    expertise: Said = Field("", description="whose knowledge the training rows and the review rest on")
    authority: Said = Field(
        "", description="which sources the training rows come from, and who stands for them"
    )
    trust: Said = Field("", description="how a wrong answer is noticed, corrected and told to readers")

    @property
    def empty(self) -> list[str]:
        """The fields in which nobody has written anything."""
        return [name for name, value in self.model_dump().items() if not value]
