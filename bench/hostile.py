"""Ten thousand hostile inputs, and what headstart makes of each: a result or one clear sentence.

    python bench/hostile.py                             # about ten minutes on two cores
    python bench/hostile.py --count 100 --seed 3
    python bench/hostile.py --only table:17 --seed 3    # one of them again, which stays in --folder

Each input is made from the seed, its kind and its number alone (tests/data/corpus.py), and given to what the stages use:
the decoders of prepare and serve, fetch, archives, params.yaml; every thirtieth folder goes through prepare too. It fails
if there is a traceback, a sentence that is none or that names nothing, a hang, much memory, a change of anything but the
results, or if a refusal has changed what an earlier run left. Prints the counts, the slowest and the largest, and each
failure; ends with status 1 if there is one. Ctrl-C ends it with what has been found so far.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from _project import ROOT

sys.path.insert(0, str(ROOT))
from headstart.base.artifacts import PrepareFolder
from headstart.base.artifacts.audit import AuditReport
from headstart.base.errors import HeadstartError, refusal
from headstart.base.params import Params
from headstart.base.paths import network_file, weights_file
from headstart.base.safe_text import visible
from headstart.base.sections import Data, Prepare, Split
from headstart.data.archives import unpack
from headstart.data.contact_sheet import write_contact_sheet
from headstart.data.decode import Unusable
from headstart.data.decoders import BASE_BYTES, BYTES_PER_PIXEL, Decoders, Rules
from headstart.data.fetch import fetch, read_manifest
from headstart.data.packed import Pixels
from headstart.data.prepare import prepare
from headstart.data.sources import source_of
from headstart.data.sources_address import Address
from tests.data import corpus
from tests.data.corpus_pictures import picture

SECONDS, MEGABYTES = 60, 1000  # that one input may take of processor time and of memory, in this process
# Below the default of 100 megapixels everything is smaller by as much, and ten thousand inputs take minutes.
RULES = Rules(short_side=64, max_megapixels=4)
DECODER_MEGABYTES = (BASE_BYTES + RULES.max_megapixels * 1e6 * BYTES_PER_PIXEL) / 1e6 + 100  # and its program
EARLIER = "path,label,split,group,size,sha256\na/1.png,a,,,1,0\n"  # what an earlier run left
PREPARED_EVERY, CHECKED_EVERY = 30, 5
SMALL, EVEN = Prepare(short_side=64, max_megapixels=1), Split(val=0.3, test=0.3)


class Hang(BaseException):
    """Not to be caught with other errors."""


class Wrong(Exception):  # noqa: N818 - a finding
    """A property that does not hold."""


@dataclass
class Case:
    """One input: its folder holds the input, ``outside``, which nobody may touch, and ``project``, where results go."""

    kind: str
    number: int
    folder: Path
    rng: Random
    decoders: Decoders

    @property
    def manifest(self) -> Path:
        return self.folder / "project/manifest.csv"


@dataclass
class Tally:
    results: int = 0
    sentences: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    largest: list[tuple[float, str]] = field(default_factory=list)


# --- what is done with an input ------------------------------------------------------------------------------------


def run_picture(case: Case) -> None:
    """As prepare reads a file, or as serve reads the body of a request."""
    name, data = picture(case.rng)
    path = case.folder / name
    path.write_bytes(data)
    try:
        if case.rng.random() < 0.7:
            quality = case.rng.choice((None, 95))
            stored, pixels = case.decoders.pack(path, case.decoders.size(path), quality)
            shape, right = (stored.height, stored.width), len(pixels) == 3 * stored.height * stored.width
            check(right or quality is not None, f"{len(pixels)} bytes for {shape}")
        else:
            shape = case.decoders.decode(data, case.decoders.size(data)).shape[:2]
    except Unusable as reason:
        if str(reason).startswith("decoding it failed"):
            raise Wrong(str(reason)) from None
        raise
    check(0 < min(shape) <= 1.25 * 64 + 1, f"{shape} pixels where the short side is 64")


def run_source(case: Case, source: Path) -> None:
    """fetch, and sometimes prepare with the contact sheet."""
    case.manifest.write_text(EARLIER)
    data, before = Data(source=str(source), limit=case.rng.choice((None, None, None, 1, 5))), state(case)
    try:
        pictures = fetch(data, case.manifest)
    except (HeadstartError, OSError) as error:
        check(case.manifest.read_text() == EARLIER, "the earlier manifest is gone")
        names = (source.name, visible(source.name), source.parent.name, "outside", str(case.folder))
        check(any(name in str(error) for name in names), f"names no file: {error}")
        raise
    check(state(case) == before, "the source was changed")
    check(read_manifest(case.manifest) == pictures, "the manifest reads otherwise than it was written")
    if case.number % PREPARED_EVERY == 0 and len(pictures) < 1000:
        folder = case.folder / "project/prepared"
        manifest = prepare(pictures, source_of(data).root(data), SMALL, EVEN, 0, 1, folder)
        write_contact_sheet(Pixels(folder), manifest, PrepareFolder(folder).sheet)
        report = AuditReport.read(PrepareFolder(folder).audit)
        kept, dropped = set(manifest["path"]), {entry.path for entry in report.dropped}
        check({p.path for p in pictures} == kept | dropped and not kept & dropped, "the audit misses a picture")


def run_archive(case: Case) -> None:
    """Unpacked where an earlier one was unpacked, or fetched."""
    source = corpus.archive(case.rng, case.folder)
    if case.rng.random() < 0.5:
        run_source(case, source)
        return
    before = case.folder / "project/out/before"
    before.parent.mkdir()
    before.write_text("before")
    try:
        unpack(source, before.parent)
    except HeadstartError as error:
        check(source.name in str(error), f"names no archive: {error}")
        check([path.name for path in before.parent.parent.rglob("*")] == ["out", "before"], "left or removed something")
        raise
    for path in before.parent.rglob("*"):
        check(not path.is_symlink() and (path.is_file() or path.is_dir()), f"unpacked {path.name!a}, which is no file")


def run_params(case: Case) -> None:
    """Loaded, and given to those who look at names and paths in it."""
    file = case.folder / "project/params.yaml"
    file.write_bytes(corpus.params(case.rng))
    try:
        params = Params.load(file)
    except HeadstartError as error:
        check(str(error).startswith(str(file)), f"names no file: {error}")
        check("secretword" not in str(error), "shows a password")
        raise
    network_file(params.backbone)
    weights_file(params.weights)
    corpus.plain(case.rng, case.folder / "project/set")
    fetch(params.data.model_copy(update={"source": "set"}), case.manifest)
    if not isinstance(source_of(params.data), Address):  # only what needs no network
        source_of(params.data)


KINDS: dict[str, tuple[float, Callable[[Case], None]]] = {  # with their shares
    "picture": (0.60, run_picture),
    "name": (0.08, lambda case: run_source(case, corpus.names(case.rng, case.folder))),
    "tree": (0.08, lambda case: run_source(case, corpus.tree(case.rng, case.folder))),
    "table": (0.08, lambda case: run_source(case, corpus.table(case.rng, case.folder))),
    "archive": (0.08, run_archive),
    "params": (0.08, run_params),
}


# --- what must hold ------------------------------------------------------------------------------------------------


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


def check_sentence(text: str) -> None:
    check(12 <= len(text) <= 4000 and text == visible(text), f"no sentence: {text!r}")
    check(not re.search(r"Traceback|\b[A-Z]\w+Error\b|object at 0x", text), f"says what only Python says: {text}")


def state(case: Case) -> bytes:
    """Kind, size, mode and times of all that a user gave; for some cases, since it takes longer than the rest."""
    if case.number % CHECKED_EVERY:
        return b""
    command = ["find", ".", "-path", "./project", "-prune", "-o", "-printf", "%p %y %s %m %T@ %C@ %l\\0"]
    return subprocess.run(command, cwd=case.folder, capture_output=True, check=True).stdout


def check_outcome(case: Case, sentence: str | None, said: str, secret: os.stat_result, mine: float, its: float) -> None:
    """What must hold whatever came out; ``mine`` and ``its`` are the megabytes of this process and of its decoder."""
    if sentence is not None:
        check_sentence(sentence)
    for line in said.splitlines():
        check(line == visible(line), f"printed {line!r}")
    check(mine < MEGABYTES and its < DECODER_MEGABYTES, f"takes {mine:.0f} MB, and its decoder {its:.0f} MB")
    outside = case.folder / "outside"
    now = (outside / "secret.png").lstat()
    same = (secret.st_mtime_ns, secret.st_size) == (now.st_mtime_ns, now.st_size)
    check(same and [path.name for path in outside.iterdir()] == ["secret.png"], "a file outside was touched")


def judge(case: Case, run: Callable[[Case], None], tally: Tally) -> None:
    """Run one input in its folder, and book what came of it."""
    name, said, project = f"{case.kind}:{case.number}", io.StringIO(), case.folder / "project"
    project.mkdir(parents=True)
    (case.folder / "outside").mkdir()
    (case.folder / "outside/secret.png").write_bytes(corpus.png(50))
    os.environ["DVC_ROOT"] = str(project)  # the checkout
    secret = os.lstat(case.folder / "outside/secret.png")
    decoder = case.decoders._processes[0]
    forget_peaks(decoder)
    before = peak(os.getpid())  # of what this process holds anyway
    start, sentence, problem = time.process_time() + children_seconds(decoder), None, ""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 5 * SECONDS)  # if it waits for what never comes
    try:
        with redirect_stdout(said), redirect_stderr(said):
            run(case)
    except (HeadstartError, Unusable) as error:
        sentence = str(error)
    except Wrong as error:
        problem = str(error)
    except Exception as error:
        sentence = refusal(error) or None  # with which a stage ends, as with others
        problem = "" if sentence else traceback.format_exc()
    except Hang:
        problem = f"takes more than {SECONDS} s: {traceback.format_exc()}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.process_time() + children_seconds(decoder) - start
    tally.slowest = sorted([*tally.slowest, (seconds, name)], reverse=True)[:3]
    mine, its = peak(os.getpid()) - before, peak(decoder._running.pid if decoder._running else 0)
    tally.largest = sorted([*tally.largest, (max(mine, its), name)], reverse=True)[:3]
    try:
        check_outcome(case, sentence, said.getvalue(), secret, mine, its)
    except (Wrong, OSError) as error:
        problem = problem or str(error)
    if problem:
        tally.failures.append(f"{name}: {problem}")
        print(f"FAILURE --only {name}: {visible(problem.strip().splitlines()[-1])}", file=sys.stderr, flush=True)
    elif sentence is not None:
        kind = re.sub(r"'[^']*'|\"[^\"]*\"|\S*/\S*|[\d×.,]+", "…", sentence).replace(case.folder.name, "…")
        tally.sentences[" ".join(kind.split())[:70]] += 1
    else:
        tally.results += 1


def children_seconds(decoder: Any) -> float:
    """The processor time of the running decoder, and of those that have ended."""
    times = os.times()
    running = 0.0
    if decoder._running:
        fields = Path(f"/proc/{decoder._running.pid}/stat").read_text().rpartition(")")[2].split()
        running = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return times.children_user + times.children_system + running


def forget_peaks(decoder: Any) -> None:
    for process in (os.getpid(), *([decoder._running.pid] if decoder._running else [])):
        with suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")


def peak(process: int) -> float:
    """The most memory (RSS) in MB that a process has had since; 0 if it is gone."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
        return int(found[1]) / 1e3 if found else 0.0
    return 0.0


@contextmanager
def folder_for(name: str, base: Path | None) -> Iterator[Path]:
    """A folder; a temporary one is removed, also where Python finds it too deep."""
    if base:
        subprocess.run(["rm", "-rf", base], check=False)
        yield base
        return
    folder = Path(tempfile.mkdtemp(prefix=f"hostile-{name}-"))
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-rf", folder], check=False)


def inputs(count: int) -> Iterator[tuple[str, int]]:
    """Kinds and numbers, all kinds mixed in their shares."""
    for number in range(count):
        point, total = (number * 0.6180339887) % 1, 0.0
        for kind, (share, _) in KINDS.items():
            total += share
            if point < total:
                yield kind, number
                break


def interrupted(*_: object) -> None:
    raise Hang


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one input, as KIND:NUMBER, or all of a KIND")
    parser.add_argument("--folder", type=Path, help="where the one input is left; it is replaced")
    arguments = parser.parse_args()
    kind, _, number = (arguments.only or "").partition(":")
    chosen = [(kind, int(number))] if number else [one for one in inputs(arguments.count) if kind in ("", one[0])]
    signal.signal(signal.SIGPROF, interrupted)
    signal.signal(signal.SIGALRM, interrupted)
    tallies = {kind: Tally() for kind in KINDS}
    decoders = Decoders(1, RULES)
    with suppress(KeyboardInterrupt):
        for kind, number in chosen:
            with folder_for(kind, arguments.folder.absolute() if arguments.folder else None) as folder:
                case = Case(kind, number, folder, Random(f"{arguments.seed} {kind} {number}"), decoders)
                judge(case, KINDS[kind][1], tallies[kind])
    decoders.close()
    for kind, tally in tallies.items():
        refused, failed = tally.sentences.total(), len(tally.failures)
        if not tally.results + refused + failed:
            continue
        print(f"{kind}: {tally.results} results, {refused} sentences of {len(tally.sentences)} kinds, {failed} failures")
        print(f"  slowest: {', '.join(f'{seconds:.2f} s {name}' for seconds, name in tally.slowest)}")
        print(f"  largest: {', '.join(f'{megabytes:.0f} MB {name}' for megabytes, name in tally.largest)}")
        for sentence, times in tally.sentences.most_common(8):
            print(f"  {times:5} {visible(sentence)}")
        for failure in tally.failures:
            print(f"  FAILURE (--seed {arguments.seed} --only {failure}", flush=True)
    failures = sum(len(tally.failures) for tally in tallies.values())
    done = failures + sum(tally.results + tally.sentences.total() for tally in tallies.values())
    print(f"{done} inputs, {failures} failures")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
