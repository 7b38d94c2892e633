"""The files that a person gives beside a model: its projector and its LoRA adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypedDict

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.local_files import HandedOver
from llamesh.cli.sources import fetchable
from llamesh.client.own_files import companion_purpose
from llamesh.client.profile import Profile, load_profile

NO_FILE = "none"


class PullArguments(TypedDict):
    """Arguments of `Models.pull`."""

    projector: str
    adapters: dict[str, str] | None


class HandedCompanions:
    """Companions that the mesh can fetch."""

    def __init__(self, projector: HandedOver, adapters: dict[str, HandedOver] | None) -> None:
        self._files = [projector, *(adapters or {}).values()]
        addresses = None if adapters is None else {name: adapter.url for name, adapter in adapters.items()}
        self.arguments = PullArguments(projector=projector.url, adapters=addresses)

    @property
    def kept(self) -> bool:
        """Whether the mesh may still read the files after this command."""
        return self._files[0].kept

    @kept.setter
    def kept(self, kept: bool) -> None:
        for file in self._files:
            file.kept, file.asked = kept, True


@dataclass(frozen=True, slots=True)
class Companions:
    """The sources of a projector and of adapters by name. Without a value, they stay as they are; the word `none` means no file."""

    projector: str = ""
    adapters: dict[str, str] | None = None

    @classmethod
    def read(cls, projector: str, adapters: Sequence[str]) -> Companions:
        """Read the options. CommandError for an adapter that is not NAME=SOURCE, or a name that is there twice."""
        if list(adapters) in ([], [NO_FILE]):
            return cls(projector, {} if adapters else None)
        found: dict[str, str] = {}
        for word in adapters:
            name, equals, source = word.partition("=")
            if not equals or not name or not source:
                hint = f"--lora {name or 'NAME'}={source or 'SOURCE'}" if equals else f"--lora style={word}"
                raise CommandError(f"--lora {word} is not NAME=SOURCE", hint=hint, code=Exit.USAGE)
            if name in found:
                raise CommandError(f"--lora gives the name {name} twice", code=Exit.USAGE)
            found[name] = source
        return cls(projector, found)

    @contextmanager
    def handed(self, model_uuid: str, profile: Profile | None = None) -> Iterator[HandedCompanions]:
        """Put the files of this machine where the mesh of a profile may read them for a model, for as long as the block lasts."""
        profile = profile or load_profile()
        with ExitStack() as stack:

            def hand(source: str, what: str) -> HandedOver:
                return stack.enter_context(fetchable(source, profile, purpose=companion_purpose(what, model_uuid)))

            projector = HandedOver(self.projector) if self.projector == NO_FILE else hand(self.projector, "projector")
            adapters = self.adapters
            handed = None if adapters is None else {name: hand(source, name) for name, source in adapters.items()}
            yield HandedCompanions(projector, handed)
