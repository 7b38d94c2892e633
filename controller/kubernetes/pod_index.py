"""The pods of all servers, found by server and by uid. The cost of a look does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from controller.kubernetes.informer import uid_of
from controller.kubernetes.modelserve import SERVER_LABEL
from llamesh.kit.kubernetes_api import Object


class PodIndex:
    """Invariant: each pod is in both indexes or in none, below the server that its label names now."""

    def __init__(self) -> None:
        self._pods: dict[str, Object] = {}
        self._of_server: dict[str, set[str]] = {}

    def put(self, pod: Object) -> None:
        """Add a pod, or replace its earlier version."""
        uid = uid_of(pod)
        self.drop(pod)
        self._pods[uid] = pod
        self._of_server.setdefault(server_of(pod), set()).add(uid)

    def drop(self, pod: Object) -> None:
        """Remove a pod."""
        known = self._pods.pop(uid_of(pod), None)
        if known is None:
            return
        # Its label may have changed since.
        members = self._of_server[server_of(known)]
        members.discard(uid_of(pod))
        if not members:
            del self._of_server[server_of(known)]

    def servers(self) -> Collection[str]:
        """Return every server that has a pod."""
        return self._of_server.keys()

    def of_server(self, server_uuid: str) -> list[Object]:
        """Return the pods of a server, the oldest first."""
        return sorted((self._pods[uid] for uid in self._of_server.get(server_uuid, ())), key=_age)

    def with_uid(self, uid: str) -> Object | None:
        """Return a pod by its uid; None if it has gone."""
        return self._pods.get(uid)

    def __iter__(self) -> Iterator[Object]:
        return iter(list(self._pods.values()))


def server_of(item: Object) -> str:
    """Return the id of the server that an object belongs to; empty if none."""
    return str((item["metadata"].get("labels") or {}).get(SERVER_LABEL, ""))


def _age(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]
