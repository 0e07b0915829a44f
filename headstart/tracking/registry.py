"""The registry of models in the user's MLflow store: a version per result, and which of them is the champion.

The alias ``challenger`` is on the newest result, ``champion`` on the one that is in use. A change of champion is written
down before it is made, and the alias is moved last: whoever looks into the registry after a kill carries it through.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.base.artifacts import ModelFolder
from headstart.base.errors import HeadstartError
from headstart.base.kept import say_damaged
from headstart.base.params import Params
from headstart.base.paths import state_folder
from headstart.inference.provenance import check_whole, digest_of_model, remember
from headstart.tracking.model_card import description
from headstart.tracking.store import ARITHMETIC, GONE, MODEL, RESULT, downloaded, opened, twice, unless, uri

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION, CHALLENGER = "champion", "challenger"
# Tags. Of a version: what came of it, the sentence that says why, and the record of the change that made it champion.
# Of the registered model: the record of the last change, and of one that is under way.
OUTCOME, DECISION, PROMOTION = "headstart.outcome", "headstart.decision", "headstart.promotion"
CHANGED, CHANGING = "headstart.champion", "headstart.changing"
ROLLED_BACK = "rolled back"
LONGEST_WHY, KEPT = 1000, 3  # characters of a reason; models on disk
MANIFEST = "prepare/manifest.parquet"  # among a run's artifacts
OLD_MANIFEST = "data/manifest.parquet"  # where runs of headstart before the rooms have it


@dataclass(frozen=True)
class Version:
    """One version of the model.

    Attributes:
        number: MLflow's.
        run_id: the run that it came from.
        result: the digest of what it was made from, as ``tracking.result_digest`` has it; empty for a model that was not
            made here.
        outcome: promoted, kept, refused or rolled back; None where nothing is decided.
        decision: the sentence that says why; empty where nothing is decided.
        arithmetic: as ``evaluation.summary.arithmetic`` has it; empty for a model that was not made here.
        model: the digest of all its files; empty for one that was not made here, or by an older version.
    """

    number: int
    run_id: str
    result: str
    outcome: str | None = None
    decision: str = ""
    arithmetic: str = ""
    model: str = ""


class Registry:
    """The versions of the registered model. Every method asks the store anew and raises a HeadstartError where it does not
    answer."""

    def __init__(self, params: Params) -> None:
        """No store is asked yet.

        Raises:
            HeadstartError: there is to be no registry.
        """
        if params.registered_model is None:
            raise HeadstartError(
                "registry.model is null, so results are not registered; give a name there and run `headstart track`"
            )
        self.name = params.registered_model

    # --- versions -----------------------------------------------------------------------------------------------------

    def register(self, run_id: str, result: str, model_id: str, card: str, lineage: dict[str, str]) -> Version:
        """The version of ``result``, which is made where there is none, and is the challenger until it is decided on.

        Other checkouts may register the same result in the same store at the same moment. The lowest number stays: who
        gets a higher one has the lower one before its eyes, since numbers are given in order.

        A version whose run or files were deleted in MLflow is replaced by a new one, which takes over what was decided
        about it, and its aliases.

        Args:
            model_id: of the model that was logged with the run.
            card: the model card, in Markdown.
            lineage: tags.
        """
        with opened() as client:
            if self._model(client) is None:
                unless("RESOURCE_ALREADY_EXISTS", client.create_registered_model, self.name)
            found = self._of_result(client, result)
            lost = [version for version in found if _is_lost(client, version)]
            if len(lost) == len(found):
                source = client.get_logged_model(model_id).artifact_location
                tags = {**(lost[0].tags if lost else {}), RESULT: result} | lineage
                self._create(client, source, run_id, model_id, description(card), tags)
                found = self._of_result(client, result)
            numbers = {version.version for version in lost}
            first, *twins = (version for version in found if version.version not in numbers)
            self._take_over(client, lost, first)
            for twin in twins:
                unless(GONE, client.delete_model_version, self.name, str(twin.version))
            if OUTCOME not in first.tags:
                self._challenge(client, str(first.version))
            return _version(first)

    def _create(self, client: MlflowClient, source: str, run: str, model: str, text: str, tags: dict[str, str]) -> None:
        from mlflow.exceptions import MlflowException

        for attempt in range(10):
            try:
                client.create_model_version(self.name, source, run, tags=tags, description=text, model_id=model)
                return
            except MlflowException as error:  # MLflow tries three times to be the first of all who want the next number
                if "Giving up" not in str(error) or attempt == 9:
                    raise

    def _take_over(self, client: MlflowClient, lost: list[ModelVersion], new: ModelVersion) -> None:
        aliases = client.get_registered_model(self.name).aliases if lost else {}
        for alias, number in aliases.items():
            if str(number) in {str(version.version) for version in lost}:
                client.set_registered_model_alias(self.name, alias, str(new.version))
        for version in lost:
            unless(GONE, client.delete_model_version, self.name, str(version.version))

    def _challenge(self, client: MlflowClient, number: str) -> None:
        twice(client.set_registered_model_alias, self.name, CHALLENGER, number)  # another may set the first alias meanwhile

    def champion(self) -> Version | None:
        return self._under(CHAMPION)

    def challenger(self) -> Version | None:
        return self._under(CHALLENGER)

    def _under(self, alias: str) -> Version | None:
        with opened() as client:
            number = _number(self._model(client), alias)
            return None if number is None else self._known(client, number)

    def by_result(self, result: str) -> Version | None:
        with opened() as client:
            found = self._of_result(client, result) if self._model(client) else []
            return _version(found[0]) if found else None

    def is_lost(self, version: Version) -> bool:
        """Whether its run or its files were deleted in MLflow since."""
        with opened() as client:
            found = unless(GONE, client.get_model_version, self.name, str(version.number))
            return found is None or _is_lost(client, found)

    def version(self, number: int) -> Version:
        """The version with that number.

        Raises:
            HeadstartError: there is none.
        """
        with opened() as client:
            self._model(client)
            found = self._known(client, number)
            if found is None:
                there = sorted(int(v.version) for v in client.search_model_versions(f"name='{self.name}'"))
                has = f"it has {', '.join(map(str, there))}" if there else "it has none; run `headstart track`"
                raise HeadstartError(f"{self.name} has no version {number} in the registry; {has}")
            return found

    def _of_result(self, client: MlflowClient, result: str) -> list[ModelVersion]:
        found = client.search_model_versions(f"name='{self.name}' and tags.`{RESULT}` = '{result}'")
        return sorted(found, key=lambda version: int(version.version))

    def _known(self, client: MlflowClient, number: int) -> Version | None:
        found = unless(GONE, client.get_model_version, self.name, str(number))
        return None if found is None else _version(found)

    def _model(self, client: MlflowClient) -> RegisteredModel | None:
        """The registered model, a change of champion that somebody began carried through; None where there is none."""
        model: RegisteredModel | None = unless(GONE, client.get_registered_model, self.name)
        if model is None or CHANGING not in model.tags:
            return model
        self._carry_through(client, model.tags[CHANGING])
        return client.get_registered_model(self.name)

    # --- files --------------------------------------------------------------------------------------------------------

    def download(self, version: Version, trust: bool = False) -> Path:
        """The folder that holds the version's MLmodel. It is kept in the checkout, and is there whole or not at all.

        Args:
            trust: code in a model whose digest the registry does not have may be run, now and later.

        Raises:
            HeadstartError: the store holds no model there, or not the one that was registered.
        """
        from filelock import FileLock

        models = state_folder("models")
        # The result stands in the name: another store may have another version of this number.
        target = ModelFolder(models, f"{self.name}-{version.number}-{version.result[:7] or version.run_id[:7]}")
        with FileLock(state_folder("locks") / "models.lock"):
            if target.exists():
                try:
                    self._check(version, target)
                except HeadstartError:
                    say_damaged(target)
                    shutil.rmtree(target)
            if not target.exists():
                for left in models.glob(".*"):  # of a download that was killed
                    shutil.rmtree(left, ignore_errors=True)
                if self.is_lost(version):
                    raise HeadstartError(
                        f"the run or the files of version {version.number} of {self.name} were deleted in MLflow; where "
                        "its result is in data/, `headstart track` logs it again; or let another version be the champion: "
                        "`headstart promote VERSION --why ...`"
                    )
                with opened() as client:
                    source = client.get_model_version_download_uri(self.name, str(version.number))
                with downloaded(source, models) as folder:
                    if not (folder / "MLmodel").exists():
                        raise HeadstartError(f"version {version.number} of {self.name} holds no MLmodel ({source})")
                    self._check(version, ModelFolder(folder))
                    folder.rename(target)
            if version.model or trust:
                remember(target)
            os.utime(target)
            folders = [path for path in models.iterdir() if path.is_dir()]  # `headstart models` has files there
            for old in sorted(folders, key=lambda path: -path.stat().st_mtime_ns)[KEPT:]:
                shutil.rmtree(old, ignore_errors=True)
        return target

    def _check(self, version: Version, model: ModelFolder) -> None:
        check_whole(model)
        if version.model and digest_of_model(model) != version.model:
            raise HeadstartError(
                f"version {version.number} of {self.name} is not the model that was registered: the files that MLflow has "
                "of it have another digest; promote another version"
            )

    def pictures(self, version: Version) -> set[str]:
        """SHA-256 of the picture files that the version was made from, those that only tested it too."""
        return set(self._manifest(version)["sha256"])

    def learned(self, version: Version) -> set[str]:
        """SHA-256 of the picture files that it was trained on, or chosen by."""
        manifest = self._manifest(version)
        return set(manifest["sha256"][manifest["split"] != "test"])

    def _manifest(self, version: Version) -> pd.DataFrame:
        import pandas as pd

        with self.artifact(version, MANIFEST) as new, self.artifact(version, OLD_MANIFEST) as old:
            file = new or old
            if file is None:
                raise HeadstartError(
                    f"the run of version {version.number} of {self.name} does not say which pictures it was made from "
                    f"(no {MANIFEST} in run {version.run_id}); let a model that was made here be the champion"
                )
            return pd.read_parquet(file, columns=["sha256", "split"])

    @contextmanager
    def artifact(self, version: Version, path: str) -> Iterator[Path | None]:
        """A copy of a file of the version's run, for as long as it is looked at; None where the run has none there."""
        with opened() as client:
            run = unless(GONE, client.get_run, version.run_id) if version.run_id else None
            listed = client.list_artifacts(version.run_id, path.rpartition("/")[0]) if run else []
            source = run.info.artifact_uri if run else ""
        if path not in {entry.path for entry in listed}:
            yield None
            return
        with downloaded(f"{source}/{path}") as file:
            yield file

    # --- the champion -------------------------------------------------------------------------------------------------

    def decide(self, version: Version, outcome: str, sentence: str) -> None:
        """Write down what was decided about a version, and why, where no alias is moved by it."""
        with opened() as client:
            client.set_model_version_tag(self.name, str(version.number), DECISION, sentence)
            client.set_model_version_tag(self.name, str(version.number), OUTCOME, outcome)

    def promote(self, version: Version, why: str) -> None:
        """Make it the champion.

        Raises:
            HeadstartError: it is the champion already, or no reason is given.
        """
        why = _reason(why)
        with opened() as client:
            before = _number(self._model(client), CHAMPION)
            if before == version.number:
                raise HeadstartError(f"version {version.number} of {self.name} is the champion already")
            self._change(client, {"outcome": "promoted", "champion": version.number, "before": before, "why": why})

    def rollback(self, why: str) -> Version:
        """Make the champion before this one the champion again: the last that was not itself rolled back.

        Raises:
            HeadstartError: there is none, or no reason is given.
        """
        why = _reason(why)
        with opened() as client:
            current = _number(self._model(client), CHAMPION)
            if current is None:
                raise HeadstartError(f"{self.name} has no champion that could be rolled back")
            target = self._before(client, current)
            self._change(client, {"outcome": ROLLED_BACK, "champion": target.number, "before": current, "why": why})
            return target

    def _before(self, client: MlflowClient, current: int) -> Version:
        seen, number = {current}, self._predecessor(client, current)
        while number is not None and number not in seen:
            found = self._known(client, number)
            if found is not None and found.outcome != ROLLED_BACK:
                return found
            seen.add(number)
            number = self._predecessor(client, number)
        raise HeadstartError(
            f"no champion before version {current} of {self.name} is on record; name the one to take with "
            "`headstart promote VERSION --why ...`"
        )

    def _predecessor(self, client: MlflowClient, number: int) -> int | None:
        found = unless(GONE, client.get_model_version, self.name, str(number))
        record = json.loads(found.tags.get(PROMOTION, "{}")) if found is not None else {}
        before: int | None = record.get("before")
        return before

    def _change(self, client: MlflowClient, record: dict[str, Any]) -> None:
        signed = record | {"who": _who(), "when": datetime.now(UTC).isoformat(timespec="seconds")}
        text = json.dumps(signed, ensure_ascii=False)
        client.set_registered_model_tag(self.name, CHANGING, text)
        self._carry_through(client, text)

    def _carry_through(self, client: MlflowClient, text: str) -> None:
        record = json.loads(text)
        back = record["outcome"] == ROLLED_BACK
        judged = str(record["before"] if back else record["champion"])
        if self._known(client, record["champion"]) is not None:  # it may have been deleted since
            tags = {DECISION: record["why"], OUTCOME: record["outcome"]} | ({} if back else {PROMOTION: text})
            for key, value in tags.items() if self._known(client, int(judged)) else ():
                client.set_model_version_tag(self.name, judged, key, value)
            client.set_registered_model_tag(self.name, CHANGED, text)
            client.set_registered_model_alias(self.name, CHAMPION, str(record["champion"]))
        unless(GONE, client.delete_registered_model_tag, self.name, CHANGING)


def _is_lost(client: MlflowClient, version: ModelVersion) -> bool:
    from mlflow.artifacts import list_artifacts

    run = unless(GONE, client.get_run, version.run_id) if version.run_id else None
    if version.run_id and (run is None or run.info.lifecycle_stage == "deleted"):
        return True
    source = unless(GONE, client.get_model_version_download_uri, version.name, str(version.version))  # a twin may be gone
    return source is None or not unless(GONE, lambda: list_artifacts(artifact_uri=source, tracking_uri=uri()))


def _version(found: ModelVersion) -> Version:
    tags = found.tags
    return Version(
        int(found.version), found.run_id or "", tags.get(RESULT, ""), tags.get(OUTCOME), tags.get(DECISION, ""),
        tags.get(ARITHMETIC, ""), tags.get(MODEL, ""),
    )  # fmt: skip


def _number(model: RegisteredModel | None, alias: str) -> int | None:
    number = None if model is None else model.aliases.get(alias)
    return None if number is None else int(number)


def _reason(why: str) -> str:
    why = " ".join(why.split())
    if not why:
        raise HeadstartError("say why: the reason is kept with the version; --why 'what you know and the figures do not'")
    if len(why) > LONGEST_WHY:
        raise HeadstartError(f"the reason is {len(why)} characters long; {LONGEST_WHY} are kept")
    return why


def _who() -> str:
    user = "somebody"
    with suppress(OSError, KeyError, ImportError):  # a container's user may have no name
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"
