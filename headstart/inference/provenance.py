"""Whether a packaged model is what was packaged, and whether it was made here. It travels in the model with the predictor.

A model is data, but for two things: ``code/``, which MLflow runs and headstart does not, and network.py, which is run where
the backbone is the user's own. So nothing of the kind is run from a folder that is not known (docs/threats.md).
"""

from __future__ import annotations

from pathlib import Path

from headstart.base.artifacts import DATA, ModelFolder
from headstart.base.artifacts.classifier import ClassifierDetails
from headstart.base.dvc_files import locked_outputs, md5_of, md5_of_listing
from headstart.base.errors import HeadstartError, made_again
from headstart.base.files import replacing, sha256_of, sha256_of_files, write_text
from headstart.base.paths import checkout, is_own

NOT_OURS = ("__pycache__", "registered_model_meta")  # what Python and MLflow put into a model that is loaded


def write_sums(model: ModelFolder) -> None:
    """Write the digests of all files, as ``sha256sum`` does: `sha256sum -c SHA256SUMS` checks them without headstart."""
    write_text(model.sums, _as_sha256sum({name: sha256_of(model / name) for name in _names(model)}))


def check_whole(model: ModelFolder) -> None:
    """Compare a packaged model with the digests that were written when it was packaged, if they were.

    Raises:
        HeadstartError: a file was changed, added or taken away since.
    """
    try:
        text = model.sums.read_text(encoding="utf-8")
        written = {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}
        if text != _as_sha256sum(written):
            raise ValueError
    except FileNotFoundError:
        if _says_that_it_has_sums(model):
            raise _changed(model, f"{model.sums.name} is not there") from None
        return  # packaged by an older version, or no model at all, which is said by whoever reads it
    except (OSError, ValueError):
        raise _changed(model, f"{model.sums.name} is damaged") from None
    present = _names(model)
    found = [f"{name} was added" for name in present if name not in written]
    found += [f"{name} is not there" for name in written if name not in present]
    found += [f"{name} was changed" for name in present if name in written and _sha256(model / name) != written[name]]
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise _changed(model, f"{found[0]}{more}")


def check_known(model: ModelFolder) -> None:
    """See to it that no code is run that the user does not know of.

    Raises:
        HeadstartError: the network is a file in the model, and neither this checkout has made the model, nor does its
            dvc.lock name it, nor was it taken from the user's registry.
    """
    if is_own(ClassifierDetails.read(model.classifier.details).backbone) and not (_remembered(model) or _locked(model)):
        raise HeadstartError(
            f"{model} was not made here, and to load it runs the code in {model.classifier.network}; read that file, and "
            "give --trust (in Python trust=True) if you want it to be run"
        )


def remember(model: ModelFolder) -> None:
    """Note that the model is known: it was made here, or is what the user's registry holds."""
    with replacing(_note(model)) as part:
        part.write_text(f"{model}\n", encoding="utf-8")


def digest_of_model(model: ModelFolder) -> str:
    return sha256_of(model.sums) if model.sums.exists() else sha256_of_files(model, leave_out=NOT_OURS)


def _note(model: ModelFolder) -> Path:
    return checkout() / ".headstart" / "packaged" / digest_of_model(model)


def _remembered(model: ModelFolder) -> bool:
    return _note(model).exists()


def _locked(model: ModelFolder) -> bool:
    """Whether it is data/package of the current folder's dvc.lock, as after `dvc pull` in a fresh clone."""
    lock, packages = Path("dvc.lock"), set[str]()
    if lock.exists():
        packages = {out.md5 for out in locked_outputs(lock.read_text("utf-8")) if out.path == DATA.package.as_posix()}
    if not packages:
        return False
    names = [*_names(model), *([model.sums.name] if model.sums.exists() else [])]
    listing = {f"{DATA.package.model.name}/{name}": md5_of(model / name) for name in names}
    return md5_of_listing(listing) in packages


def _names(model: ModelFolder) -> list[str]:
    """Of all files but the list of digests itself, relative to the model."""
    paths = (path.relative_to(model) for path in model.rglob("*") if path.is_file())
    left_out = {*NOT_OURS, model.sums.name}
    return sorted(path.as_posix() for path in paths if not left_out & set(path.parts))


def _as_sha256sum(digests: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def _sha256(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        return str(error)  # which is no digest


def _says_that_it_has_sums(model: ModelFolder) -> bool:
    try:
        return model.sums.name in model.mlmodel.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _changed(model: ModelFolder, what: str) -> HeadstartError:
    made_here = model.resolve() == DATA.package.model.resolve()
    again = made_again(ClassifierDetails.made_by) if made_here else "take a fresh copy of it"
    return HeadstartError(f"{model} is not as it was packaged: {what}; {again}")
