"""The model of queries, with the norm of the items in its graph: both sides in one version.

::

    PATH/current                  text, such as ``versions/12``; replaced last, in one rename
    PATH/versions/12/model.keras  the baked model, and what other formats are called
    PATH/versions/12/model.keras.parity.json  how far it is from the norm after prediction
    PATH/versions/12/contract.json  what a query must do alike
    PATH/versions/12.json         what was baked, for which space, and checksums

A model is baked, and its parity proved, before anything of a refresh is published. What was baked
stays as long as model, space and versions of libraries do: later versions are links to it, and a
rollback brings back what was published with the version that it restores. It lies here, and not
in `publish`, because `bake` is a command.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from batchnorm_tool import environment
from batchnorm_tool.commands.bake.bake import REPORT, BakeRequest, bake_model
from batchnorm_tool.contract import CONTRACT, Contract, output_to_json
from batchnorm_tool.errors import BatchnormToolError, JobError, OutputError, Refused
from batchnorm_tool.job import Engine, Model
from batchnorm_tool.job.messages import Expects
from batchnorm_tool.job.types import Count, LocalOrUri, Name, Names, option
from batchnorm_tool.models import security
from batchnorm_tool.models.backends.export import bake_format
from batchnorm_tool.models.backends.normalized_model import GraphOutput
from batchnorm_tool.publish import Facts
from batchnorm_tool.publish.directories import DirectoryTarget, PublishDirectory, publish_directory
from batchnorm_tool.publish.parquet import POINTER, VERSIONS, manifest_path
from batchnorm_tool.storage import FileRecord, Storage
from batchnorm_tool.storage.checked_json import Record, sha256
from batchnorm_tool.storage.files import fault_in, record_of
from batchnorm_tool.store.rows import Publication

_BAKED = "_baked"
_LIBRARIES = ("tensorflow", "keras", "batchnorm-tool")


class PublishQueryModel(PublishDirectory):
    """The keys of ``to: query_model``."""

    path: LocalOrUri = Field(description="Directory of the baked models.")
    keep: Count = option(3, "Versions that stay.")
    model: LocalOrUri = Field(description="The model of queries: a .keras or .h5 file.")
    layer: Annotated[Name | None, Expects("the name of a layer")] = option(
        None, "Use the output of this inner layer."
    )
    outputs: Annotated[Names | None, Expects("a list of output names")] = option(
        None, "The output that is normalized; default: the only output."
    )
    formats: Annotated[Names, Expects("a list of formats, such as [keras, onnx]")] = option(
        ["keras"], "Formats that `bake` writes."
    )


@dataclass(frozen=True)
class QueryModelManifest(Record):
    """What lies in the directory of a version; ``made_of`` is a hash of all that it depends on."""

    version: int
    run_id: str | None
    space: str
    model: str
    made_of: str
    files: tuple[FileRecord, ...]
    format: Literal[1] = 1


class QueryModel(DirectoryTarget):
    """The target ``query_model``: a directory of baked models."""

    section = PublishQueryModel
    below = VERSIONS

    def __init__(self, section: PublishQueryModel) -> None:
        super().__init__(section)
        self._formats, self._engine = section.formats, Engine()
        self._model = Model(path=section.model, layer=section.layer, outputs=section.outputs)

    def check(self) -> None:
        """Look for what the formats need, and for a model that the gate admits."""
        super().check()
        try:
            for name in self._formats:
                bake_format(name)
            security.check(self._model, security.examined(self._model.path))
        except Refused as error:
            raise self._refusal(error) from error

    def prepare(self, contract: Contract, engine: Engine) -> bool:
        """Bake ahead what a version with a contract needs, unless it is there."""
        storage, self._engine, made_of = Storage(self.place), engine, self._made_of(contract)
        with storage.lock():
            if not self._place_of(storage, made_of):
                storage.remove(_BAKED)  # for another model or space
                try:
                    self._bake(storage, contract, made_of)
                except Refused as error:
                    raise self._refusal(error) from error
            newest = max(self._versions(storage), default=0)
            held, whole = _manifest(storage, newest), _undamaged(storage, newest)
        is_same = whole is not None and whole.made_of == made_of
        return held is not None and held.space == contract.space and not is_same

    def _add(self, storage: Storage, publication: Publication, held: Facts | None) -> Facts:  # noqa: ARG002  (what lies there tells)
        version, record = publication.version, publication.record
        if publication.contract is None:
            raise OutputError("the version has no contract: an earlier batchnorm-tool wrote it.")
        contract = Contract.from_bytes(publication.contract)
        restored = _manifest(storage, record.restores or 0)
        made_of = restored.made_of if restored else self._made_of(contract)
        found, directory = _undamaged(storage, version), f"{VERSIONS}/{version}"
        if (found and (found.run_id, found.made_of)) != (record.run_id, made_of):
            source = self._place_of(storage, made_of)
            if source is None and restored:  # the model may be another one now
                raise OutputError(
                    f"the model of version {restored.version}, which is restored, is damaged. "
                    f"Restore `{self.place}/{VERSIONS}/{restored.version}` from a copy, and run "
                    "the same command again."
                )
            source = source or self._bake(storage, contract, made_of)
            files = [*_linked(storage, source, storage.staged(directory))]
            path = storage.staged(f"{directory}/{CONTRACT}")
            files.append(replace(storage.put(path, publication.contract), path=CONTRACT))
            publish_directory(storage, directory)
            content = restored.model if restored else self._content
            told = (version, record.run_id, record.space, content, made_of, tuple(files))
            storage.put(manifest_path(version), QueryModelManifest(*told).to_document())
        storage.put(POINTER, f"{directory}\n".encode())
        storage.remove(_BAKED)
        return {"path": directory}

    def _remove(self, storage: Storage, version: int) -> None:
        storage.remove(manifest_path(version))
        super()._remove(storage, version)

    @property
    def _content(self) -> str:
        return security.examined(self._model.path).content

    def _made_of(self, contract: Contract) -> str:
        packages = [package for name in self._formats for package in bake_format(name).packages]
        versions = environment.versions((*_LIBRARIES, *packages))
        output = output_to_json(contract.outputs[0])
        model = [self._content, self._model.layer, self._model.outputs, self._formats]
        return sha256([model, contract.space, output, versions])

    def _place_of(self, storage: Storage, made_of: str) -> str | None:
        """Return the directory that holds, undamaged, what was baked of the same."""
        for version in reversed(self._versions(storage)):
            manifest = _undamaged(storage, version)
            if manifest is not None and manifest.made_of == made_of:
                return f"{VERSIONS}/{version}"
        place = f"{_BAKED}/{made_of}"
        files = [bake_format(name).file for name in self._formats]
        whole = {*files, *(f"{file}{REPORT}" for file in files)}
        return place if whole == {*storage.names(place)} else None

    def _bake(self, storage: Storage, contract: Contract, made_of: str) -> str:
        (output,) = contract.outputs
        place = f"{_BAKED}/{made_of}"
        storage.remove(place)  # what a killed one left
        request = BakeRequest(
            model=self._model,
            out=storage.root / place,
            outputs=(GraphOutput.like(output),),
            space=contract.space,
            engine=self._engine,
        )
        for name in self._formats:  # each on its own, so that its proof lies beside it
            out = request.out / bake_format(name).file
            bake_model(replace(request, out=out, formats=(name,)))
        return place

    def _refusal(self, error: BatchnormToolError) -> JobError:
        return JobError(f"`publish`: target `{self.name}`: {error.message}")


def _linked(storage: Storage, source: str, target: str) -> Iterator[FileRecord]:
    """Give the files of a baked model a second name each; yields their records."""
    root = storage.root / source
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and name != CONTRACT:
            storage.link(f"{source}/{name}", f"{target}/{name}")
            yield replace(record_of(storage.root, f"{target}/{name}"), path=name)


def _manifest(storage: Storage, version: int) -> QueryModelManifest | None:
    return QueryModelManifest.from_document(storage.get(manifest_path(version)))


def _undamaged(storage: Storage, version: int) -> QueryModelManifest | None:
    """Return the manifest of a version whose files are as it says; ``None`` for any other."""
    manifest, root = _manifest(storage, version), storage.root / f"{VERSIONS}/{version}"
    files = manifest.files if manifest else ()
    faults = (fault_in(root, file, "manifest")[0] for file in files)
    return None if any(faults) else manifest
