"""A W&B server on loopback: the part of its protocol that the real client uses for runs and artifacts.

It is a server, not a mock: the installed client and its Go core talk to it over HTTP, GraphQL is executed
against wandb_schema.graphql, files are uploaded and fetched by URL, and what two clients do at once meets
here. A query that asks for what the schema lacks fails as it would at W&B, so a new client shows at once.

What it holds to, as W&B does: a version gets its number when it is committed, never before; an alias names one
version of a collection; the content of the latest version logged again is that version; a half-uploaded version
is pending and invisible; a resumed run goes on behind its last line. What it leaves out: permissions, search,
media, sweeps, reports.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLError,
    GraphQLSchema,
    build_schema,
    execute_sync,
    parse,
    validate,
)

API_KEY = "l" * 40
ENTITY, ORGANIZATION, ORGANIZATION_ENTITY = "acme", "Acme", "acme-org"

SCHEMA = Path(__file__).with_name("wandb_schema.graphql")

FEATURES = (
    "LARGE_FILENAMES",
    "ARTIFACT_TAGS",
    "CLIENT_IDS",
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP",
    "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE",
    "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION",
)


@cache
def schema() -> GraphQLSchema:
    return build_schema(SCHEMA.read_text(encoding="utf-8"))


@cache  # a client sends some thirty queries, and checking one takes longer than answering it
def checked(query: str) -> tuple[DocumentNode | None, list[GraphQLError]]:
    """Return a query as it was parsed, or what is wrong with it."""
    try:
        document = parse(query)
    except GraphQLError as error:
        return None, [error]
    errors = validate(schema(), document)
    return (None, errors) if errors else (document, [])


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _connection(
    nodes: list[dict[str, Any]], after: str | None = None, first: int | None = None
) -> dict[str, Any]:
    start = int(after or 0)
    end = min(start + (first or len(nodes)), len(nodes))
    info = {"endCursor": str(end), "hasNextPage": end < len(nodes)}
    return {"totalCount": len(nodes), "pageInfo": info, "edges": nodes[start:end]}


@dataclass
class Version:
    """One version of an artifact; `index` is given when it is committed."""

    id: str
    collection: "Collection"
    digest: str
    metadata: str | None
    run: "Run | None"  # None: a run declared it as an input, and nobody made it here
    ttl: int | None = None
    description: str | None = None
    index: int | None = None
    state: str = "PENDING"
    tags: set[str] = field(default_factory=set)
    asked_aliases: list[str] = field(default_factory=list)
    manifest_path: str = ""
    used_by: list["Run"] = field(default_factory=list)
    created: str = field(default_factory=_now)

    @property
    def info(self) -> dict[str, Any]:
        """Its metadata, parsed."""
        parsed: dict[str, Any] = json.loads(self.metadata or "{}")
        return parsed

    @property
    def aliases(self) -> set[str]:
        """What names it in its own collection."""
        return {alias for alias, version in self.collection.aliases.items() if version is self}


@dataclass
class Collection:
    """Versions under one name; a portfolio links versions of other collections."""

    id: str
    entity: str
    project: str
    name: str
    type: str
    portfolio: bool = False
    versions: list[Version] = field(default_factory=list)
    aliases: dict[str, Version] = field(default_factory=dict)
    created: str = field(default_factory=_now)

    def named(self, alias: str) -> Version | None:
        """The committed version that `v3`, or an alias, names."""
        number = re.fullmatch(r"v(\d+)", alias)
        if number is None:
            return self.aliases.get(alias)
        return next((one for place, one in self.live() if place == int(number[1])), None)

    def live(self) -> list[tuple[int, Version]]:
        """The versions that can be seen, with their numbers here."""
        if self.portfolio:
            return list(enumerate(self.versions))
        return [(one.index, one) for one in self.versions if one.index is not None and one.state == "COMMITTED"]


@dataclass
class Run:
    """One run, what it streamed, and the artifacts that went into it and came out of it."""

    id: str
    entity: str
    project: str
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    exit_code: int | None = None
    created: str = field(default_factory=_now)
    inputs: list[Version] = field(default_factory=list)
    outputs: list[Version] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """Its settings; the client's own are under `_wandb`."""
        parsed = json.loads(self.fields.get("config") or "{}")
        return {name: one["value"] for name, one in parsed.items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged step by step."""
        return [json.loads(line) for line in self.files.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        """Its summary, as it was streamed last."""
        streamed = self.files.get("wandb-summary.json") or [self.fields.get("summaryMetrics", "{}")]
        parsed: dict[str, Any] = json.loads(streamed[-1])
        return parsed

    @property
    def state(self) -> str:
        """`running` until somebody says how it ended."""
        return {None: "running", 0: "finished"}.get(self.exit_code, "failed")


@dataclass
class Fault:
    """What goes wrong with the next requests whose operation or path matches `where`."""

    where: str
    times: int
    status: int | None = None
    drop: bool = False
    before: Callable[[], None] | None = None


class WandbServer:
    """Everything that the server knows, and the GraphQL that changes it; `serving()` puts it on a port."""

    def __init__(self) -> None:
        self.url = ""
        self.lock = threading.RLock()
        self.runs: dict[tuple[str, str, str], Run] = {}
        self.collections: dict[tuple[str, str, str], Collection] = {}
        self.versions: dict[str, Version] = {}
        self.clients: dict[str, str] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refusals: list[str] = []
        self.faults: list[Fault] = []
        self.oldest_first = False
        self._ids = itertools.count(1)

    # What tests ask and cause.

    def clear(self) -> None:
        """Forget everything, as a new server would."""
        with self.lock:
            for kept in (self.runs, self.collections, self.versions, self.clients, self.storage):
                kept.clear()
            for told in (self.requests, self.refusals, self.faults):
                told.clear()
            self.oldest_first = False

    def collection(self, name: str, project: str = "lora-ops-registry", entity: str = ENTITY) -> Collection:
        """A collection that must exist."""
        return self.collections[entity, project, name]

    def linked(self, project: str, name: str) -> dict[str, Version]:
        """What the aliases of a registry collection name."""
        portfolio = self.collections.get((ORGANIZATION_ENTITY, project, name))
        return dict(portfolio.aliases) if portfolio else {}

    def files_of(self, version: Version) -> dict[str, str]:
        """The files of a version: name to its place in `storage`."""
        return {name: self._content_path(entry["digest"]) for name, entry in self._entries(version).items()}

    def count(self, operation: str) -> int:
        """How many requests there were of one GraphQL operation."""
        return self.requests.count(operation)

    def fail(self, where: str, status: int = 500, times: int = 1) -> None:
        """Answer the next matching requests with an HTTP error."""
        self.faults.append(Fault(where, times, status=status))

    def drop(self, where: str, times: int = 1) -> None:
        """Close the connection in the middle of the next matching requests, unanswered."""
        self.faults.append(Fault(where, times, drop=True))

    def meanwhile(self, where: str, action: Callable[[], None]) -> None:
        """Let somebody else do something just before the next matching request is answered."""
        self.faults.append(Fault(where, 1, before=action))

    def take_fault(self, where: str) -> Fault | None:
        """The fault that meets a request, if any; it is used up."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.where, where):
                    fault.times -= 1
                    return fault
        return None

    # GraphQL.

    def execute(self, body: dict[str, Any]) -> dict[str, Any]:
        """Run one GraphQL operation."""
        with self.lock:
            document, errors = checked(body["query"])
            if document is None:
                result = ExecutionResult(data=None, errors=errors)
            else:
                result = execute_sync(
                    schema(),
                    document,
                    root_value=self,
                    variable_values=body.get("variables"),
                    operation_name=body.get("operationName") or None,
                )
        if result.errors:
            self.refusals += [f"{error.message}" for error in result.errors]
        return dict(result.formatted)

    def _id(self, kind: str) -> str:
        return base64.b64encode(f"{kind}:{next(self._ids)}".encode()).decode()

    # Queries: graphql-core calls the method that has the name of the field.

    def viewer(self, _: Any) -> dict[str, Any]:
        return {
            "id": "viewer",
            "entity": ENTITY,
            "name": "Ana",
            "username": "ana",
            "email": "ana@example.com",
            "flags": "{}",
            "admin": False,
            "teams": {"edges": [{"node": self._entity(ENTITY)}]},
        }

    def serverInfo(self, _: Any) -> dict[str, Any]:
        return {"features": [{"name": name, "isEnabled": True} for name in FEATURES]}

    def entity(self, _: Any, name: str | None = None) -> dict[str, Any]:
        return self._entity(name or ENTITY)

    def organization(self, _: Any, name: str) -> dict[str, Any]:
        return {
            "id": ORGANIZATION,
            "name": ORGANIZATION,
            "orgEntity": self._entity(ORGANIZATION_ENTITY),
            "featureFlags": [],
        }

    def project(self, _: Any, name: str, entityName: str | None = None) -> dict[str, Any] | None:
        entity = entityName or ENTITY
        known = {key[:2] for key in (*self.runs, *self.collections)}
        return self._project(entity, name) if (entity, name) in known else None

    model = project

    def artifact(self, _: Any, id: str) -> dict[str, Any] | None:
        return self._artifact(self.versions[id]) if id in self.versions else None

    def artifactCollection(self, _: Any, id: str) -> dict[str, Any] | None:
        found = next((one for one in self.collections.values() if one.id == id), None)
        return self._collection(found) if found else None

    def clientIDMapping(self, _: Any, clientID: str) -> dict[str, Any] | None:
        return {"serverID": self.clients[clientID]} if clientID in self.clients else None

    # Mutations.

    def upsertBucket(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        known = next((run for run in self.runs.values() if run.id == input.get("id")), None)
        if known is None:
            key = (input.get("entityName") or ENTITY, input.get("modelName") or "uncategorized", input["name"])
            known = self.runs.get(key)
        inserted = known is None
        if known is None:
            known = self.runs[key] = Run(self._id("Run"), *key)
        known.fields.update({name: value for name, value in input.items() if value is not None})
        return {"bucket": self._run(known), "inserted": inserted}

    def createRunFiles(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        where = f"runs/{input['entityName']}/{input['projectName']}/{input['runName']}"
        files = [{"name": name, "uploadUrl": self._url(f"{where}/{name}")} for name in input["files"]]
        return {"runID": input["runName"], "uploadHeaders": [], "files": files}

    def createArtifact(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        name = input.get("artifactCollectionName") or input["artifactCollectionNames"][0]
        entity = input["entityName"] or ENTITY  # a run that was offline knew of none
        key = (entity, input["projectName"], name)
        if key not in self.collections:
            self.collections[key] = Collection(self._id("ArtifactCollection"), *key, input["artifactTypeName"])
        collection = self.collections[key]
        if collection.type != input["artifactTypeName"]:
            raise ValueError(f"collection {name} holds artifacts of type {collection.type}")
        name = input.get("runName")
        run = self.runs[entity, input["projectName"], name] if name else None
        latest = collection.aliases.get("latest")
        if latest is not None and latest.digest == input["digest"] and input.get("enableDigestDeduplication"):
            version = latest
            self._name(collection, version, [one["alias"] for one in input.get("aliases") or []])
        else:
            version = Version(
                self._id("Artifact"),
                collection,
                input["digest"],
                input.get("metadata"),
                run,
                ttl=input.get("ttlDurationSeconds"),
                description=input.get("description"),
                tags={one["tagName"] for one in input.get("tags") or []},
                asked_aliases=[one["alias"] for one in input.get("aliases") or []],
            )
            self.versions[version.id] = version
        if input.get("clientID"):
            self.clients[input["clientID"]] = version.id
        return {"artifact": self._artifact(version)}

    def createArtifactManifest(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        version = self.versions[input["artifactID"]]
        version.manifest_path = f"manifests/{version.id}/{input['name']}"
        return {"artifactManifest": self._manifest(version)}

    def updateArtifactManifest(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        return {"artifactManifest": self._manifest(self.versions[input["artifactManifestID"]])}

    def createArtifactFiles(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for one in input["artifactFiles"]:
            path = self._content_path(one.get("md5") or one["digest"])
            # As at W&B: content that is kept already gets no URL, and the client does not send it again.
            kept = path in self.storage
            nodes.append(
                {
                    "node": {
                        "id": path,
                        "name": one["name"],
                        "storagePath": path,
                        "uploadUrl": None if kept else self._url(path),
                        "uploadHeaders": [],
                        "artifact": self._artifact(self.versions[one["artifactID"]]),
                    }
                }
            )
        return {"files": _connection(nodes)}

    def commitArtifact(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        version = self.versions[input["artifactID"]]
        for name, entry in self._entries(version).items():
            if "digest" in entry and self._content_path(entry["digest"]) not in self.storage:
                raise ValueError(f"file {name} was not uploaded")
        if version.state == "PENDING":
            collection = version.collection
            version.index = sum(one.index is not None for one in collection.versions)
            version.state = "COMMITTED"
            collection.versions.append(version)
            if version.run:
                version.run.outputs.append(version)
            self._name(collection, version, ["latest", *version.asked_aliases])
        return {"artifact": self._artifact(version)}

    def useArtifact(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        version = self.versions[input["artifactID"]]
        run = self.runs[input["entityName"], input["projectName"], input["runName"]]
        if version not in run.inputs:
            run.inputs.append(version)
            version.used_by.append(run)
        return {"artifact": self._artifact(version)}

    def updateArtifact(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        version = self.versions[input["artifactID"]]
        if input.get("metadata") is not None:
            version.metadata = input["metadata"]
        if input.get("description") is not None:
            version.description = input["description"]
        if input.get("ttlDurationSeconds") is not None:
            # The client's code for "no time to live" is -2, for "the team's default" -1.
            asked = input["ttlDurationSeconds"]
            version.ttl = asked if asked > 0 else None
        version.tags |= {one["tagName"] for one in input.get("tagsToAdd") or []}
        version.tags -= {one["tagName"] for one in input.get("tagsToDelete") or []}
        return {"artifact": self._artifact(version)}

    def addAliases(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        version = self.versions[input["artifactID"]]
        for one in input["aliases"]:
            key = (one["entityName"], one["projectName"], one["artifactCollectionName"])
            self._name(self.collections[key], version, [one["alias"]])
        return {"success": True}

    def deleteAliases(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        version = self.versions[input["artifactID"]]
        for one in input["aliases"]:
            key = (one["entityName"], one["projectName"], one["artifactCollectionName"])
            aliases = self.collections[key].aliases
            if aliases.get(one["alias"]) is version:
                del aliases[one["alias"]]
        return {"success": True}

    def deleteArtifact(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        version = self.versions[input["artifactID"]]
        if version.aliases and not input.get("deleteAliases"):
            raise ValueError("an artifact with aliases can't be deleted")
        version.state = "DELETED"
        for alias in version.aliases:
            del version.collection.aliases[alias]
        return {"artifact": self._artifact(version)}

    def linkArtifact(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        version = self.versions[input.get("artifactID") or self.clients[input["clientID"]]]
        key = (input["entityName"], input["projectName"], input["artifactPortfolioName"])
        if key not in self.collections:
            kind = version.collection.type
            self.collections[key] = Collection(self._id("ArtifactCollection"), *key, kind, portfolio=True)
        portfolio = self.collections[key]
        if version not in portfolio.versions:
            portfolio.versions.append(version)
        names = [one["alias"] for one in input.get("aliases") or []]
        self._name(portfolio, version, ["latest", *names])
        index = portfolio.versions.index(version)
        return {"versionIndex": index, "artifactMembership": self._membership(portfolio, version, index)}

    def unlinkArtifact(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        version = self.versions[input["artifactID"]]
        portfolio = next(one for one in self.collections.values() if one.id == input["artifactPortfolioID"])
        portfolio.versions.remove(version)
        for alias in [alias for alias, one in portfolio.aliases.items() if one is version]:
            del portfolio.aliases[alias]
        return {"success": True}

    def _name(self, collection: Collection, version: Version, aliases: list[str]) -> None:
        collection.aliases.update(dict.fromkeys(aliases, version))

    # Objects as GraphQL gives them; what costs something, or leads back, is called only when it is asked for.

    def _entity(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "name": name,
            "entityType": "team",
            "organization": lambda info: self.organization(info, ORGANIZATION),
            "project": lambda info, name_=name, **args: self.project(info, args["name"], name_),
            "xxhashDigestsEnabled": False,
        }

    def _project(self, entity: str, name: str) -> dict[str, Any]:
        def collection_of(_: Any, name_: str) -> Collection | None:
            return self.collections.get((entity, name, name_))

        def membership(_: Any, name: str) -> dict[str, Any] | None:
            collection, _sep, alias = name.partition(":")
            found = collection_of(_, collection)
            version = found.named(alias or "latest") if found else None
            return self._membership(found, version) if found and version else None

        def run_of(_: Any, name: str, missingOk: bool = False) -> dict[str, Any] | None:
            run = self.runs.get((entity, project, name))
            return self._run(run) if run else None

        def type_of(_: Any, name: str) -> dict[str, Any] | None:
            kinds = {one.type for key, one in self.collections.items() if key[:2] == (entity, project)}
            return self._type(entity, project, name) if name in kinds else None

        project = name
        return {
            "id": f"{entity}/{name}",
            "internalId": f"{entity}/{name}",
            "name": name,
            "entity": lambda _: self._entity(entity),
            "readOnly": False,
            "createdAt": _now(),
            "run": run_of,
            "bucket": run_of,
            "artifactType": type_of,
            "artifactCollectionMembership": membership,
            "artifact": lambda info, name: (found := membership(info, name)) and found["artifact"](info),
            "artifactCollection": lambda info, name: (
                self._collection(found) if (found := collection_of(info, name)) else None
            ),
        }

    def _type(self, entity: str, project: str, kind: str) -> dict[str, Any]:
        def collection(_: Any, name: str) -> dict[str, Any] | None:
            found = self.collections.get((entity, project, name))
            return self._collection(found) if found and found.type == kind else None

        def collections(
            _: Any, after: str | None = None, first: int | None = None, **__: Any
        ) -> dict[str, Any]:
            found = [
                {"node": self._collection(one)}
                for key, one in self.collections.items()
                if key[:2] == (entity, project) and one.type == kind
            ]
            return _connection(found, after, first)

        return {
            "id": f"{entity}/{project}/{kind}",
            "name": kind,
            "createdAt": _now(),
            "artifactCollection": collection,
            "artifactCollections": collections,
        }

    def _collection(self, one: Collection) -> dict[str, Any]:
        def artifacts(
            _: Any,
            after: str | None = None,
            first: int | None = None,
            order: str | None = None,
            filters: str | None = None,
        ) -> dict[str, Any]:
            rows = [{"version": f"v{index}", "node": self._artifact(each)} for index, each in one.live()]
            # W&B lists the newest first unless it is asked otherwise.
            newest_first = order.startswith("-") if order else not self.oldest_first
            return _connection(rows[::-1] if newest_first else rows, after, first)

        def aliases(_: Any, after: str | None = None, first: int | None = None) -> dict[str, Any]:
            return _connection([{"node": self._alias(one, alias)} for alias in one.aliases], after, first)

        def membership(_: Any, aliasName: str) -> dict[str, Any] | None:
            version = one.named(aliasName)
            return self._membership(one, version) if version else None

        def latest(_: Any) -> dict[str, Any] | None:
            return self._artifact(one.aliases["latest"]) if "latest" in one.aliases else None

        return {
            "__typename": "ArtifactPortfolio" if one.portfolio else "ArtifactSequence",
            "id": one.id,
            "name": one.name,
            "createdAt": one.created,
            "project": lambda _: self._project(one.entity, one.project),
            "defaultArtifactType": lambda _: self._type(one.entity, one.project, one.type),
            "tags": {"edges": []},
            "aliases": aliases,
            "artifacts": artifacts,
            "artifactMembership": membership,
            "latestArtifact": latest,
            "digestAlgorithm": "MANIFEST_MD5",
        }

    def _alias(self, collection: Collection, alias: str) -> dict[str, Any]:
        return {
            "id": f"{collection.id}:{alias}",
            "alias": alias,
            "artifactCollection": lambda _: self._collection(collection),
        }

    def _membership(self, collection: Collection, version: Version, index: int | None = None) -> dict[str, Any]:
        named = [alias for alias, one in collection.aliases.items() if one is version]
        if index is None:
            index = next(place for place, one in collection.live() if one is version)
        return {
            "id": f"{collection.id}/{version.id}",
            "versionIndex": index,
            "createdAt": version.created,
            "aliases": [self._alias(collection, alias) for alias in named],
            "artifactCollection": lambda _: self._collection(collection),
            "artifact": lambda _: self._artifact(version),
            "files": lambda _, **args: self._files(version, **args),
        }

    def _artifact(self, version: Version) -> dict[str, Any]:
        def memberships(_: Any) -> dict[str, Any]:
            nodes = [
                {"node": self._membership(one, version)}
                for one in self.collections.values()
                if any(version is each for _index, each in one.live())
            ]
            return {"edges": nodes}

        def aliases(_: Any) -> list[dict[str, Any]]:
            return [
                self._alias(one, alias)
                for one in self.collections.values()
                for alias, named in one.aliases.items()
                if named is version
            ]

        def by_entries(_: Any, entries: list[dict[str, Any]], **__: Any) -> dict[str, Any]:
            nodes = [
                {"name": one["name"], "directUrl": self._url(self._content_path(one["digest"]))}
                for one in entries
            ]
            return _connection([{"node": node} for node in nodes])

        collection = version.collection
        return {
            "id": version.id,
            "artifactSequence": lambda _: self._collection(collection),
            "versionIndex": version.index,
            "artifactType": lambda _: self._type(collection.entity, collection.project, collection.type),
            "description": version.description,
            "metadata": version.metadata,
            "ttlDurationSeconds": version.ttl or -2,
            "ttlIsInherited": False,
            "tags": [{"id": tag, "name": tag} for tag in sorted(version.tags)],
            "state": version.state,
            "size": lambda _: sum(entry.get("size", 0) for entry in self._entries(version).values()),
            "digest": version.digest,
            "commitHash": version.digest,
            "fileCount": lambda _: len(self._entries(version)),
            "createdAt": version.created,
            "updatedAt": version.created,
            "aliases": aliases,
            "currentManifest": lambda _: self._manifest(version),
            "artifactMemberships": memberships,
            "filesByManifestEntries": by_entries,
            "files": lambda _, **args: self._files(version, **args),
            "usedBy": lambda _: {"edges": [{"node": self._run(run)} for run in version.used_by]},
            "createdBy": lambda _: version.run and self._run(version.run),
        }

    def _files(
        self,
        version: Version,
        names: list[str] | None = None,
        after: str | None = None,
        first: int | None = None,
    ) -> dict[str, Any]:
        nodes = [
            {
                "id": entry["digest"],
                "name": name,
                "displayName": name,
                "sizeBytes": entry.get("size", 0),
                "url": self._url(self._content_path(entry["digest"])),
                "directUrl": self._url(self._content_path(entry["digest"])),
                "digest": entry["digest"],
                "md5": entry["digest"],
                "updatedAt": version.created,
            }
            for name, entry in self._entries(version).items()
            if names is None or name in names
        ]
        return _connection([{"node": node} for node in nodes], after, first)

    def _entries(self, version: Version) -> dict[str, dict[str, Any]]:
        content = self.storage.get(version.manifest_path)
        entries: dict[str, dict[str, Any]] = json.loads(content)["contents"] if content else {}
        return entries

    def _manifest(self, version: Version) -> dict[str, Any]:
        url = self._url(version.manifest_path)
        file = {"id": version.manifest_path, "uploadUrl": url, "uploadHeaders": [], "directUrl": url}
        return {"id": version.id, "file": file}

    def _run(self, run: Run) -> dict[str, Any]:
        def listed(versions: list[Version]) -> Callable[..., dict[str, Any]]:
            rows = [{"version": f"v{one.index}", "node": self._artifact(one)} for one in versions]
            return lambda _, after=None, first=None: _connection(rows, after, first)

        return {
            "id": run.id,
            "name": run.name,
            "displayName": run.fields.get("displayName", run.name),
            "config": run.fields.get("config", "{}"),
            "project": lambda _: self._project(run.entity, run.project),
            "historyLineCount": len(run.files.get("wandb-history.jsonl", [])),
            "logLineCount": 0,
            "eventsLineCount": len(run.files.get("wandb-events.jsonl", [])),
            "historyTail": json.dumps(run.files.get("wandb-history.jsonl", [])[-1:]),
            "eventsTail": json.dumps(run.files.get("wandb-events.jsonl", [])[-1:]),
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "historyKeys": None,
            "tags": [],
            "state": run.state,
            "jobType": run.fields.get("jobType"),
            "wandbConfig": json.dumps(run.config.get("_wandb", {})),
            "stopped": False,
            "projectId": "1",
            "readOnly": False,
            "createdAt": run.created,
            "user": lambda info: self.viewer(info),
            "inputArtifacts": listed(run.inputs),
            "outputArtifacts": listed(run.outputs),
        }

    def _content_path(self, digest: str) -> str:
        return f"content/{base64.b64decode(digest).hex()}"

    def _url(self, path: str) -> str:
        return f"{self.url}/storage/{quote(path)}"

    def stream(self, path: str, body: dict[str, Any]) -> None:
        """Take lines of a run's history and summary, and how it ended."""
        entity, project, name = path.split("/")[-4:-1]
        with self.lock:
            run = self.runs[entity, project, name]
            for file, chunk in (body.get("files") or {}).items():
                lines = run.files.setdefault(file, [])
                start = chunk["offset"]
                lines[start : start + len(chunk["content"])] = chunk["content"]
            if body.get("complete"):
                run.exit_code = body.get("exitcode")

    def put(self, path: str, content: bytes) -> None:
        """Keep an uploaded file; content under another digest than its own is refused, as storage does."""
        kind, _, digest = path.partition("/")
        if kind == "content" and hashlib.md5(content, usedforsecurity=False).hexdigest() != digest:
            raise ValueError("the content has another digest")
        with self.lock:
            self.storage[path] = content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's delayed acknowledgement
    wandb: WandbServer

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/graphql"):
            asked = json.loads(body)
            named = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            operation = asked.get("operationName") or (named[1] if named else "?")
            if self._meets_fault(operation):
                return
            self.wandb.requests.append(operation)
            self._answer(json.dumps(self.wandb.execute(asked)).encode())
        elif not self._meets_fault(self.path):
            self.wandb.requests.append(self.path.rsplit("/", 1)[-1])
            if self.path.endswith("/file_stream"):
                self.wandb.stream(self.path, json.loads(body))
            self._answer(b"{}")

    def do_PUT(self) -> None:
        path = unquote(self.path.removeprefix("/storage/"))
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length // 2)
        if self._meets_fault(f"upload {path}"):  # a dropped connection ends in the middle of the upload
            self.close_connection = True
            return
        try:
            self.wandb.put(path, body + self.rfile.read(length - len(body)))
        except ValueError as error:
            self._answer(str(error).encode(), 400)
            return
        self.wandb.requests.append("upload")
        self._answer(b"")

    def do_GET(self) -> None:
        if self._meets_fault(f"download {self.path}"):
            return
        content = self.wandb.storage.get(unquote(self.path.removeprefix("/storage/").partition("?")[0]))
        self.wandb.requests.append("download" if self.path.startswith("/storage/") else f"GET {self.path}")
        self._answer(content or b"", 200 if content is not None else 404)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _meets_fault(self, where: str) -> bool:
        fault = self.wandb.take_fault(where)
        if fault is None:
            return False
        if fault.before:
            fault.before()
            return False
        if fault.drop:
            self.close_connection = True
        else:
            self._answer(b'{"errors": [{"message": "injected"}]}', fault.status or 500)
        return True

    def _answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[WandbServer]:
    """A server on a free port of the loopback interface, until the block ends."""
    server = WandbServer()
    handler = type("Handler", (_Handler,), {"wandb": server})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
