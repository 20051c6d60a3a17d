"""Which version answers one request: what a tenant's route or flag says, if that may and can answer."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lora_ops.errors import LoraOpsError
from lora_ops.escaping import shortened
from lora_ops.registry.versions import Version, parse_reference
from lora_ops.rollout.assignment import Arm, Requester
from lora_ops.rollout.flags import Choice, open_flags
from lora_ops.rollout.provider import CANARY, PREFIX, PRODUCTION
from lora_ops.serving.router import Decision, Fallback, Route, Router
from lora_ops.settings.rollout import RolloutSettings

DECISIONS: Mapping[str | None, Decision] = {
    "canary": "canary",
    "pinned_user": "pinned_user",
    "segment": "segment",
}
TRIES = 3  # decisions, each undone by a change while its route was read
ARMS: Mapping[str | None, Arm] = {"canary": "canary", "control": "control"}


class AssignedRoutes:
    """One decision for each request, by OpenFeature; every version that it gives may answer.

    Args:
        router: knows who may answer.
        settings: who evaluates the flags.
        root: where a relative path of them begins.
        unready: why a version can't answer at once, or None; it is made ready meanwhile.
        flag_failed: called with tenant and reason of each request whose flag can't be followed.
    """

    def __init__(
        self,
        router: Router,
        settings: RolloutSettings,
        root: Path,
        unready: Callable[[Version], Fallback | None],
        flag_failed: Callable[[str, str], None],
    ) -> None:
        self._router = router
        self._by_registry = settings.provider == "registry"
        self._flags = open_flags(settings, root, router.tenant_route, flag_failed)
        self._unready = unready

    async def start(self) -> None:
        """Register the flag provider."""
        await self._flags.start()

    def close(self) -> None:
        """Let the flag provider go."""
        self._flags.close()

    @property
    def problem(self) -> str | None:
        """Why the flag provider can't be relied on at this moment, or None."""
        return self._flags.problem

    async def route(self, model: str, who: Requester) -> Route:
        """Return who answers this request for a model.

        Raises:
            UnknownModel, NotServed, Damaged, LoraOpsError: as `Router.route`.
        """
        for _ in range(TRIES):
            self._router.look()
            epoch = self._router.epoch
            found = self._router.tenant_route(model)
            # A name of a version is decided by the client, and without a route production answers everybody.
            if found is None or (self._by_registry and not found.route.assigns):
                route = self._router.seen(model)
            else:
                choice = await self._flags.choose(model, who)
                if not self._by_registry:  # another process was asked meanwhile
                    self._router.look()
                    return self._follow(model, choice)
                route = self._follow(model, choice)
            # Reading a route takes what was changed meanwhile: it would name an epoch that did not decide.
            if self._router.epoch == epoch:
                break
        return route

    def versions(self) -> Iterator[Version]:
        """Yield the versions that share some tenant's requests, production aside.

        Raises:
            LoraOpsError: the registry can't be read.
        """
        for tenant in self._router.tenants():  # looks
            found = self._router.tenant_route(tenant)
            for number in found.route.assigned_numbers if found else ():
                route = self._router.shared(tenant, number)
                if route and route.version:
                    yield route.version

    def _follow(self, tenant: str, choice: Choice) -> Route:
        """Return the route that a choice names, or production's, as of the last look."""
        chosen = self._chosen(tenant, choice)
        if chosen is None or chosen.version is None:
            # As the canary's its answer would count as an error of the canary, whatever flagd says of it.
            return replace(self._router.seen(tenant), arm="control" if choice.arm == "control" else None)
        unready = self._unready(chosen.version)
        if unready is None:
            return chosen
        try:
            stable = self._router.seen(tenant)
        except LoraOpsError:
            return chosen  # nobody else may answer: the request waits for it, or says why it can't be loaded
        if stable.name == chosen.name:
            return chosen
        return replace(stable, arm=chosen.arm, fallback=unready, instead_of=chosen.name)

    def _chosen(self, tenant: str, choice: Choice) -> Route | None:
        """Return the route to the version that is named in place of production; None: production."""
        if choice.value == PRODUCTION:
            return None
        if not self._by_registry:
            return self._flagged(tenant, choice.value)
        route = self._shared(tenant, _number(tenant, choice.value))
        decision = DECISIONS.get(choice.decision)
        return replace(route, decision=decision, arm=ARMS.get(choice.arm)) if route and decision else None

    def _flagged(self, tenant: str, value: str) -> Route | None:
        """Return the route to the version that flagd names: in canary, or nothing else than production."""
        found = self._router.tenant_route(tenant)
        canary = found.route.canary.number if found and found.route.canary else None
        number = canary if value == CANARY else _number(tenant, value)
        route = self._shared(tenant, number)
        state = route.version.state if route and route.version else None
        if route is None or (value == CANARY and state != "canary"):
            text = f"the flag {PREFIX}{tenant} names '{shortened(value)}', which may not answer"
            self._flags.report(tenant, "refused", text)
            return None
        if state == "production":
            return None
        if number == canary:
            return replace(route, decision="canary", arm="canary")
        return replace(route, decision="flag")

    def _shared(self, tenant: str, number: int | None) -> Route | None:
        return None if number is None else self._router.shared(tenant, number)


def _number(tenant: str, value: str) -> int | None:
    """Return the number that an id such as `finance@3` of this tenant names, or None."""
    try:
        named, which = parse_reference(value)
    except LoraOpsError:
        return None
    return which if named == tenant and isinstance(which, int) else None
