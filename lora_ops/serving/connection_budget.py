"""How many connections a server has, and which one is closed when there are too many."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal, Protocol

from lora_ops.serving.logs import OncePerMinute

logger = logging.getLogger(__name__)

CONNECTIONS = 1000
TRANSLATED = int(IPv6Address("64:ff9b::")) >> 32
"""The first 96 bits of an IPv4 client's address behind a translator."""

# idle: the gateway has no whole request head, or the last answer has gone. slow: the gateway waits for the
# client to send a body or to read an answer. working: a whole request is being answered.
State = Literal["idle", "slow", "working"]


class Member(Protocol):
    """One connection.

    Attributes:
        peer: the client's address, as `peer_name` returns it.
    """

    peer: str
    transport: asyncio.Transport


class Group:
    """The connections in one state by peer; each peer's are in the order in which they entered the state."""

    def __init__(self) -> None:
        self._peers: dict[str, dict[Member, None]] = {}
        self._sites: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, member: Member) -> None:
        """Add a connection as its peer's newest."""
        self._peers.setdefault(member.peer, {})[member] = None
        self._sites[site_name(member.peer)] += 1
        self._count += 1

    def remove(self, member: Member) -> None:
        """Remove a connection."""
        mine, site = self._peers[member.peer], site_name(member.peer)
        del mine[member]
        self._count -= 1
        self._sites[site] -= 1
        if not mine:
            del self._peers[member.peer]
        if not self._sites[site]:
            del self._sites[site]

    def oldest(self) -> Member | None:
        """Return the oldest connection of the peer with the most, at the site with the most, or None."""
        if not self._peers:
            return None
        # A client with a /48 network has 65,536 peers there, each with one connection where it likes.
        most = max(self._sites.values())
        peers = (name for name in self._peers if self._sites[site_name(name)] == most)
        return next(iter(self._peers[max(peers, key=lambda name: len(self._peers[name]))]))


class ConnectionBudget:
    """Keep the connections of a server below `most`, without cutting a request that is being answered.

    The oldest connection of the peer with the most of them is closed first, at the site with the most. So a
    client that opens very many pushes out its own, and a client with few keeps them.

    - If more than `most` are open, an idle one is closed, then a slow one. If there is none, the new one is.
    - The last twentieth of `most` is reserved for connections that are idle, so that `/health` is always
      answered. If the others take more than the rest, each new request closes a slow one. If there is none,
      `crowded` is true.

    Args:
        most: connections at the same time.
        closed: called for each connection that is closed.
    """

    def __init__(self, most: int = CONNECTIONS, closed: Callable[[], None] = lambda: None) -> None:
        self._most = most
        self._busy_most = most - most // 20
        self._states: dict[Member, State] = {}
        self._groups: dict[State, Group] = {"idle": Group(), "slow": Group(), "working": Group()}
        self._closed = closed
        self._report = OncePerMinute(
            lambda count: logger.warning("%d of more than %d connections were closed to make room", count, most)
        )

    def __len__(self) -> int:
        return len(self._states)

    @property
    def crowded(self) -> bool:
        """Whether a request on a new connection is to be refused."""
        return len(self) - len(self._groups["idle"]) > self._busy_most

    def open(self, member: Member) -> None:
        """Add a new connection, which is idle, and close what is too much: possibly the new one."""
        self._enter(member, "idle")
        if len(self) > self._most:
            self._close(self._least_needed(but=member) or member)

    def move(self, member: Member, state: State) -> None:
        """Note the state of a connection; one that was closed stays closed."""
        before = self._states.get(member)
        if before in (None, state):
            return
        self._leave(member)
        self._enter(member, state)
        if before == "idle" and self.crowded:
            slow = self._groups["slow"].oldest()
            if slow is not None and slow is not member:
                self._close(slow)

    def forget(self, member: Member) -> None:
        """Remove a connection that has ended; nothing happens the second time."""
        if member in self._states:
            self._leave(member)

    def _enter(self, member: Member, state: State) -> None:
        self._states[member] = state
        self._groups[state].add(member)

    def _leave(self, member: Member) -> None:
        self._groups[self._states.pop(member)].remove(member)

    def _least_needed(self, but: Member) -> Member | None:
        for state in ("idle", "slow"):
            found = self._groups[state].oldest()  # type: ignore[index]
            if found is not None and found is not but:
                return found
        # An answer that was broken off stays open until its client has read what was sent.
        return next((member for member in self._states if member.transport.is_closing()), None)

    def _close(self, member: Member) -> None:
        idle = self._states[member] == "idle"
        self._leave(member)
        if idle and member.transport.get_write_buffer_size():
            # The client still reads its last answer: it may finish, until the place is needed.
            self._enter(member, "slow")
            member.transport.close()
        else:
            member.transport.abort()
        self._closed()
        self._report()


def peer_name(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 network of an IPv6 address.

    A single machine usually has a whole /64 network to choose its address from. An IPv4 client that comes
    through a translator (RFC 6052) is its IPv4 address: all of them are in one network.
    """
    try:
        ip = ip_address(address)
    except ValueError:  # a Unix socket
        return address
    if not isinstance(ip, IPv6Address):
        return str(ip)
    if int(ip) >> 32 == TRANSLATED:
        return str(IPv4Address(int(ip) & 0xFFFF_FFFF))
    return str(ip.ipv4_mapped or IPv6Address(int(ip) >> 64 << 64))


@lru_cache(4096)
def site_name(peer: str) -> str:
    """Return the largest network that one client may have: the /48 of a /64 network, else the peer itself."""
    try:
        ip = ip_address(peer)
    except ValueError:
        return peer
    return str(IPv6Address(int(ip) >> 80 << 80)) if isinstance(ip, IPv6Address) else peer
