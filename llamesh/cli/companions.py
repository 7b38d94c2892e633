"""The files that a person gives beside a model: its projector and its LoRA adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypedDict

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.local_files import HandedOver
from llamesh.cli.sources import fetchable
from llamesh.client.profile import Profile, load_profile

NO_PROJECTOR = "none"


class PullArguments(TypedDict):
    """Arguments of `Models.pull`."""

    projector: str
    adapters: dict[str, str]


class HandedCompanions:
    """Companions that the mesh can fetch."""

    def __init__(self, projector: HandedOver, adapters: dict[str, HandedOver]) -> None:
        self._files = [projector, *adapters.values()]
        self.arguments = PullArguments(
            projector=projector.url, adapters={name: adapter.url for name, adapter in adapters.items()}
        )

    @property
    def kept(self) -> bool:
        """Whether the mesh may still read the files after this command."""
        return self._files[0].kept

    @kept.setter
    def kept(self, kept: bool) -> None:
        for file in self._files:
            file.kept = kept


@dataclass(frozen=True, slots=True)
class Companions:
    """The sources of a projector and of adapters by name."""

    projector: str = ""
    adapters: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, projector: str, adapters: Sequence[str]) -> Companions:
        """Read the options. CommandError for an adapter that is not NAME=SOURCE, or a name that is there twice."""
        found: dict[str, str] = {}
        for word in adapters:
            name, equals, source = word.partition("=")
            if not equals or not name or not source:
                raise CommandError(f"--lora {word} is not NAME=SOURCE", hint=f"--lora style={word}", code=Exit.USAGE)
            if name in found:
                raise CommandError(f"--lora gives the name {name} twice", code=Exit.USAGE)
            found[name] = source
        return cls(projector, found)

    @contextmanager
    def handed(self, purpose: str, profile: Profile | None = None) -> Iterator[HandedCompanions]:
        """Put the files of this machine where the mesh of a profile may read them, for as long as the block lasts."""
        profile = profile or load_profile()
        with ExitStack() as stack:

            def hand(source: str, what: str) -> HandedOver:
                return stack.enter_context(fetchable(source, profile, purpose=f"{what} of {purpose}"))

            projector = (
                HandedOver(self.projector) if self.projector == NO_PROJECTOR else hand(self.projector, "projector")
            )
            yield HandedCompanions(projector, {name: hand(source, name) for name, source in self.adapters.items()})
