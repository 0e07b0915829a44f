"""Names, trees, tables, archives and parameters as nobody should give them: any number, each from random numbers alone.

Whatever tries to get out of its folder aims at the folder ``outside`` beside it, and at nothing else on the machine.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import os
import socket
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel

from headstart.base.params import Params
from headstart.data.sources_folder import NO_TEXT
from tests.data.corpus_pictures import DAMAGES, flipped, picture
from tests.data.pictures import encoded, photograph

SHIPPED = Path(__file__).parents[2] / "params.yaml"
ODD = [
    "e\u0301", "é", "ﬁ", "Å", "A\u030a", "\u202e", "\u200d", "👩‍👩‍👧", "\n", "\r\n", "\t", "\x1b[31m", "\x07", "\x7f",
    "\x85", "\u2028",
    "-", "--help", " ", "  ", ".", "..", "...", "~", "~root", "$HOME", "`id`", "%20", "%2e%2e", "#", "?", "*", "[a-z]",
    "'", '"', ",",
    ";", "|", "&", "<b>", "\\", "C:", "CON", "\udcff", "\udce9t", "\ufeff", "\u3000", "日本", "नमस्ते", "ß", "İ", "ı",
    "=1+1", "@",
    "{{ x }}", "${x}", "null", "nan", "1e5", "0", "train", "Test", "val", "label", "split", "image", ".DVC", "dvc.lock",
    "a.png", "x",
]  # fmt: skip
PROPER = [sign for sign in ODD if not NO_TEXT.search(sign)]  # others are refused in a folder of classes


@cache
def png(number: int) -> bytes:
    return encoded(photograph(number % 60, (24, 18)))


def name(rng: Random, signs: list[str] = ODD) -> str:
    """A file name, which may be longer than file systems take."""
    text = "".join(rng.choices(signs, k=rng.choice((1, 1, 2, 3)))).replace("/", "")
    text = rng.choice((text, text, f"{text}.png", unicodedata.normalize(rng.choice(("NFC", "NFD", "NFKC")), text)))
    if rng.random() < 0.08:
        text = (
            (text * 256)
            .encode("utf-8", "surrogateescape")[: rng.choice((254, 255, 256))]
            .decode("utf-8", "surrogateescape")
        )
    return text if text not in ("", ".", "..") else f"{text}x"


def write(path: Path, data: bytes) -> None:
    with suppress(OSError):  # a name that this file system does not take, or a file where a folder should be
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def plain(rng: Random, folder: Path, classes: tuple[str, ...] = ("ants", "bees")) -> None:
    """A few pictures of each class."""
    first = rng.randrange(60)
    for number in range(rng.choice((1, 3, 8)) * len(classes)):
        label = classes[number % len(classes)]
        write(folder / label / f"{number}.png", png(first + number))


# --- names ---------------------------------------------------------------------------------------------------------


def names(rng: Random, case: Path) -> Path:
    """A folder of classes with odd names in which files have odd names, or a table or an archive of the same."""
    signs = rng.choice((ODD, PROPER, PROPER))
    files = {f"{name(rng, signs)}/{name(rng, signs)}": png(n) for n in range(rng.choice((2, 4, 9)))}
    files |= {f"{name(rng, signs)}/{n}.png": png(30 + n) for n in range(2)}
    form = rng.choice(("folder", "folder", "table", "archive"))
    root = case / rng.choice(
        ("set", "set", name(rng).encode("utf-8", "surrogateescape")[:200].decode("utf-8", "ignore") or "set")
    )
    if form == "archive":
        return _zip(case / "set.zip", [(path, data, 0) for path, data in files.items()])
    for path, data in files.items():
        write(root / path, data)
    if form == "folder":
        root.mkdir(exist_ok=True)
        return root
    root.mkdir(exist_ok=True)
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerows([("path", "label"), *((path, path.split("/")[0]) for path in files)])
    write(root / "table.csv", stream.getvalue().encode("utf-8", "surrogateescape"))
    return root / "table.csv"


# --- trees ---------------------------------------------------------------------------------------------------------


def tree(rng: Random, case: Path) -> Path:
    """A folder of classes with a few things wrong in it."""
    root = case / "set"
    root.mkdir()
    start = rng.random()
    if start < 0.6:
        plain(rng, root)
    elif start < 0.85:
        for part in rng.sample(
            ("train", "Training", "val", "valid", "test", "TEST", "test_set", "ants"), rng.choice((1, 2, 3))
        ):
            plain(rng, root / part, rng.choice((("ants", "bees"), ("ants",), ())) or ("",))
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        with suppress(OSError):
            rng.choice(ODDITIES)(rng, root)
    return root


def _somewhere(rng: Random, root: Path) -> Path:
    folders = [root, *(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())]
    return rng.choice(sorted(folders))


def _link(rng: Random, root: Path) -> None:
    """A link out, to nowhere, to itself, to a folder that it is in, or to another class."""
    where = _somewhere(rng, root)
    targets = ["..", ".", "../..", "nowhere", "link", "../outside", "../../outside", str(root), "../ants", "../bees/link",
    "1.png",
               "../../outside/secret.png", "/dev/null", "/dev/zero", "x" * 300]  # fmt: skip
    (where / rng.choice(("link", "link.png", "train", "test", "bees"))).symlink_to(rng.choice(targets))


def _linked_round(rng: Random, root: Path) -> None:
    """Folders that each hold links to all others: n! ways through them."""
    folders = [_somewhere(rng, root) / f"f{n}" for n in range(rng.choice((3, 6, 12)))]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        for number, other in enumerate(folders):
            (folder / f"to{number}").symlink_to(other)


def _deep(rng: Random, root: Path) -> None:
    """Folders in folders, to a path longer than the system takes."""
    here, depth = os.open(_somewhere(rng, root), os.O_RDONLY), rng.choice((30, 900, 1500, 2500))
    for _ in range(depth):
        with suppress(FileExistsError):
            os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    file = os.open("1.png", os.O_CREAT | os.O_WRONLY, dir_fd=here)
    os.write(file, png(5))
    os.close(file)
    os.close(here)


def _special(rng: Random, root: Path) -> None:
    """What is neither file nor folder, of which reading never ends."""
    path = _somewhere(rng, root) / "special.png"
    if rng.random() < 0.5:
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))


def _unreadable(rng: Random, root: Path) -> None:
    for path in rng.sample(sorted(root.glob("*/*")) or [root], 1):
        path.chmod(rng.choice((0, 0o111, 0o222)))


def _many_classes(rng: Random, root: Path) -> None:
    for number in range(rng.choice((30, 30, 30, 300, 300, 3000)) if rng.random() < 0.95 else 10_000):
        write(root / f"class {number}" / "only.png", png(number) + b"%d" % number)


def _odd_files(rng: Random, root: Path) -> None:
    write(
        _somewhere(rng, root)
        / rng.choice(("README.md", ".DS_Store", "Thumbs.db", "train", "__MACOSX/a", "Icon\r", ".x/y")),
        b"text",
    )
    write(_somewhere(rng, root) / picture(rng)[0], picture(rng)[1])
    with (_somewhere(rng, root) / "film.mp4").open("wb") as stream:
        stream.truncate(rng.choice((0, 30_000_000)))


def _folders(rng: Random, root: Path) -> None:
    for _ in range(rng.choice((1, 3))):
        (_somewhere(rng, root) / rng.choice(("empty", "1.png", "Ants", "ants ", "train", "deep/er/still"))).mkdir(
            parents=True
        )


def _wrapped(rng: Random, root: Path) -> None:
    """All of it one folder further down."""
    inner = root.parent / "inner"
    root.rename(inner)
    (root / "w").mkdir(parents=True)
    inner.rename(root / "w" / rng.choice(("images", "train", "set")))


ODDITIES: list[Callable[[Random, Path], None]] = [
    _link, _link, _link, _linked_round, _deep, _special, _unreadable, _many_classes, _odd_files, _folders, _wrapped,
]  # fmt: skip


# --- tables --------------------------------------------------------------------------------------------------------


def table(rng: Random, case: Path) -> Path:
    """A .csv or .parquet beside pictures that it names more or less."""
    root = case / "set"
    plain(rng, root)
    rows = [
        {"path": path.relative_to(root).as_posix(), "label": path.parent.name, "split": "", "group": ""}
        for path in sorted(root.rglob("*.png"))
    ]
    if rng.random() < 0.3:
        for number, row in enumerate(rows):
            row["split"] = rng.choice(("train", "test", "val", "Train", "", "holdout")) if rng.random() < 0.3 else "train"
            row["group"] = rng.choice(("", "g", str(number), name(rng)))
    columns = list(rng.choice((("path", "label"), ("path", "label", "split", "group"))))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        row, column = rng.choice(rows), rng.choice(columns)
        row[column] = rng.choice((
            "", " ", "\0", "nan", "None", "../outside/secret.png", str(case / "outside/secret.png"), "~", "~nobody/x.png",
            "ants", ".", "..",
            "http://x/y.png", "x" * 5000, "x" * 200_000, "ants/../ants/0.png", "ants//0.png", "ants\\0.png", "/dev/zero",
            name(rng),
        ))  # fmt: skip
    if rng.random() < 0.15:
        rows += rng.choice((rows, rows[:1]))
    if rng.random() < 0.02:
        rows *= 100_000 // len(rows)
    if rng.random() < 0.25:
        columns = rng.choice(
            (["path"], [], ["label", "path"], ["path", "label", "label"], ["Path", "Label"], [*columns, name(rng)])
        )
    path = root / f"table.{rng.choice(('csv', 'CSV', 'parquet'))}"
    data = _parquet(rng, rows, columns) if path.suffix == ".parquet" else _csv(rng, rows, columns)
    for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 2))):
        data = rng.choice(DAMAGES)(rng, data)
    write(path, data)
    return path


def _csv(rng: Random, rows: list[dict[str, str]], columns: list[str]) -> bytes:
    stream = io.StringIO()
    style: dict[str, Any] = {
        "delimiter": rng.choice((*",,,,,,;\t| ",)), "quotechar": rng.choice(('"', '"', '"', '"', "'")),
        "lineterminator": rng.choice(("\n", "\r\n", "\r")),
        "quoting": rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    }  # fmt: skip
    writer = csv.writer(stream, **style)
    writer.writerows([columns] if rng.random() < 0.95 else [])
    writer.writerows([row.get(column, "x") for column in columns] + [""] * (rng.random() < 0.02) for row in rows)
    text = rng.choice(("", "", "", "", "", "\ufeff", "\n\n", "sep=,\n", "# a comment\n")) + stream.getvalue()
    return text.encode(rng.choice((*["utf-8"] * 12, "utf-16", "latin-1", "cp932", "utf-7")), "replace")


def _parquet(rng: Random, rows: list[dict[str, str]], columns: list[str]) -> bytes:
    stream = io.BytesIO()
    if rng.random() < 0.03:  # a few bytes that stand for many rows
        pq.write_table(pa.table({column: pa.nulls(11_000_000) for column in ("path", "label")}), stream)
        return stream.getvalue()
    arrays = [pa.array([row.get(column, "x").encode("utf-8", "replace").decode() for row in rows]) for column in columns]
    if arrays and rng.random() < 0.6:  # one of another type
        n = len(rows)
        others: list[Callable[[], Any]] = [
            lambda: pa.nulls(n), lambda: pa.array(range(n)), lambda: pa.array([1.5] * n),
            lambda: pa.array([float("nan")] * n),
            lambda: pa.array([True] * n), lambda: pa.array([b"\xff\xfe"] * n), lambda: pa.array([["a"]] * n),
            lambda: pa.array([{"a": 1}] * n), lambda: pa.array([2**62] * n, pa.timestamp("ns")),
            lambda: pa.array([2**50] * n, pa.timestamp("s")), lambda: pa.array([2**31 - 1] * n, pa.date32()),
            lambda: pa.array([1] * n, pa.duration("ns")), lambda: pa.array(["a"] * n).dictionary_encode(),
            lambda: pa.array(["a"] * n, pa.large_string()), lambda: pa.array([[("a", 1)]] * n, pa.map_(pa.string(),
            pa.int8())),
            lambda: pa.array([0] * n, pa.timestamp("us", tz="Nowhere/Land")), lambda: pa.array([1] * n, pa.time64("ns")),
            lambda: pa.array([2**62] * n, pa.timestamp("us", tz="UTC")), lambda: pa.array([None, *["a"] * (n - 1)]),
        ]  # fmt: skip
        arrays.append(rng.choice(others)())
        columns = [*columns, "more"]
        if rng.random() < 0.7:
            arrays[rng.randrange(len(arrays))] = arrays[-1]
    names_ = [column.encode("utf-8", "replace").decode() for column in columns]
    pq.write_table(
        pa.Table.from_arrays(arrays, names=names_), stream, compression=rng.choice(("snappy", "none", "zstd", "gzip"))
    )
    return stream.getvalue()


# --- archives ------------------------------------------------------------------------------------------------------


def archive(rng: Random, case: Path) -> Path:
    """A zip or tar whose entries want out, are no files, are too much, or are damaged."""
    entries = [(f"set/{label}/{n}.png", png(n + 9 * k), 0) for k, label in enumerate(("ants", "bees")) for n in range(3)]
    for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
        entries.insert(rng.randrange(len(entries) + 1), _entry(rng, case))
    path = case / f"set{rng.choice(('.zip', '.zip', '.tar', '.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.TBZ2'))}"
    made = rng.choice((_zip, _tar)) if rng.random() < 0.1 else _zip if path.suffix == ".zip" else _tar
    made(path, entries, rng)
    data = path.read_bytes()
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        data = rng.choice(DAMAGES)(rng, data)
    if rng.random() < 0.06:
        data = rng.choice(
            (
                b"",
                gzip.compress(data, mtime=0),
                b"PK\5\6" + bytes(18),
                bytes(10_240),
                gzip.compress(bytes(150_000_000), 1, mtime=0),
            )
        )
    path.write_bytes(data)
    return path


def _entry(rng: Random, case: Path) -> tuple[str, bytes, int]:
    """A name, what is in the file or where the link leads, and what it is: 0 for a plain file, a type of tar entry else."""
    outside = str(case / "outside")
    target = rng.choice((
        "../outside/x.png", f"{outside}/x.png", "set/../../outside/x.png", "..\\outside\\x.png", "C:\\x", "C:/x", "", ".",
        "./", "set/ants",
        "set/ants/", "set/ants/0.png", "set/ants/0.png/x", "set/./x.png", "set//x.png", "set/ants/\0x", "x" * 300,
        "d/" * 700 + "x", "set",
        f"set/{name(rng)}/{name(rng)}", "set/link", "set/link/x.png", "set/nested.zip", "__MACOSX/._x",
        "../" * 2 + "outside", "..",
    ))  # fmt: skip
    links_, others = tarfile.SYMTYPE + tarfile.LNKTYPE, tarfile.FIFOTYPE + tarfile.CHRTYPE + tarfile.GNUTYPE_SPARSE
    kind = rng.choice(tarfile.DIRTYPE + tarfile.CONTTYPE + 3 * links_ + others + b"X")
    links = ("../outside", outside, "../../outside/secret.png", "set/ants/0.png", "link", "nowhere", "/", ".", "set/link")
    if rng.random() < 0.6:
        content = rng.choice(
            (png(3), b"", bytes(3_000_000), bytes(120_000_000) if rng.random() < 0.05 else b"x", picture(rng)[1])
        )
        return target, content, 0
    return target, rng.choice(links).encode(), kind


def _zip(path: Path, entries: list[tuple[str, bytes, int]], rng: Random | None = None) -> Path:
    stream = io.BytesIO()
    rng = rng or Random(0)
    with zipfile.ZipFile(stream, "w") as zipped:
        for entry, data, kind in entries:
            info = zipfile.ZipInfo("x")
            info.filename = entry.encode("utf-8", "replace").decode()
            info.compress_type = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            if kind:
                info.external_attr = (
                    rng.choice((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFREG)) << 16
                )
            with suppress(ValueError, OverflowError):
                zipped.writestr(info, data)
    data = bytearray(stream.getvalue())
    if rng.random() < 0.15:  # a field in the directory: flags (encrypted), method, sizes, offset
        at = data.find(b"PK\1\2") + rng.choice((8, 10, 16, 20, 24, 28, 42))
        data[at : at + 2] = rng.choice((b"\1\0", b"\0\x08", b"\xff\xff", b"\x63\0"))
    path.write_bytes(data)
    return path


def _tar(path: Path, entries: list[tuple[str, bytes, int]], rng: Random) -> Path:
    stream, form = io.BytesIO(), rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for entry, data, kind in entries:
            member = tarfile.TarInfo(entry)
            if kind:
                member.type, member.linkname, data = bytes([kind]), data.decode(), b""
            member.size = len(data)
            if rng.random() < 0.05:
                member.pax_headers = {
                    rng.choice(("size", "path", "GNU.sparse.map", "mtime")): rng.choice(
                        ("-1", "x", "9" * 30, "../outside/y")
                    )
                }
            with suppress(ValueError, OverflowError):  # a name that this kind of tar cannot hold
                tar.addfile(member, io.BytesIO(data))
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".gz": partial(gzip.compress, mtime=0), ".tgz": partial(gzip.compress, mtime=0), ".bz2": bz2.compress,
        ".TBZ2": bz2.compress, ".xz": lzma.compress,
    }  # fmt: skip
    path.write_bytes(packers.get(path.suffix, bytes)(stream.getvalue()))
    return path


# --- params --------------------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 0.5, 0.0, -0.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"), 10**30,
    -(10**400), 2**32,
    "", " ", "x", "none", "default", "null", "../x", "~nobody/x", "http://", "file://", "://",
    "https://u:secretword@h/a.zip", "torchvision:",
    "torchvision:Nothing", "resnet18", "net.py:make", ".py:", ":", "x.zip", "set.csv", "\0", "\n", "\x1b[31m", "\u202e",
    "e\u0301", "x" * 5000,
    "x/" * 2000, "x" * 4000, [], [[]], {}, {"x": 1}, {1: 2}, [1, 2], ["a", "a"], [0.1, 1.0], [1e-3] * 99,
    list(range(3000)), b"\0\xff",
    {"lr": [1e-4, 1e-2]}, {"epochs": [1, 2, 2]}, {"lr": ["a"]}, {"unfreeze": ["none", "all"]},
]  # fmt: skip


@cache
def _keys() -> tuple[tuple[str, ...], ...]:
    def below(model: type[BaseModel], before: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for key, field in model.model_fields.items():
            yield (*before, key)
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from below(field.annotation, (*before, key))

    return tuple(below(Params, ()))


@cache
def _sections() -> list[dict[str, Any]]:
    """Right values of keys, of another section's key of the same name too."""
    whole = Params().model_dump()
    inner = [section for section in whole.values() if isinstance(section, dict)]
    return [whole, *inner, whole["rank"]["budget"]]


def params(rng: Random) -> bytes:
    """A params.yaml with wrong values, wrong keys, or that is no YAML at all."""
    if rng.random() < 0.25:
        return _raw(rng)
    values: dict[Any, Any] = {}
    for _ in range(rng.choice((1, 1, 2, 8))):
        *sections, key = rng.choice(_keys())
        node, value = values, rng.choice(VALUES)
        if rng.random() < 0.5:
            value = rng.choice([here[key] for here in _sections() if key in here])
        for section in sections:
            inner = node.get(section)
            node[section] = node = inner if isinstance(inner, dict) else {}
        node[rng.choice((*[key] * 20, f"{key}s", 1, None, "\n", name(rng)))] = value
    text = yaml.safe_dump(values, allow_unicode=rng.random() < 0.5, default_flow_style=rng.choice((None, True, False)))
    return text.encode("utf-8", "surrogateescape")


def _raw(rng: Random) -> bytes:
    deep = rng.choice((5, 49, 51, 1500))
    whole = SHIPPED.read_bytes()
    text = rng.choice((
        whole, whole, flipped(rng, whole), flipped(rng, flipped(rng, whole)), whole * 2, whole.replace(b"\n", b"\r\n"),
        b"", b"\0", b"- a", b"seed",
        b"\xef\xbb\xbf" + whole, whole.decode().encode("utf-16"), b"\xff\xfe", b"[" * deep + b"]" * deep,
        b"{a: " * deep + b"}" * deep,
        b"a: &a [*a]", b"a: &a {<<: *a}", b"<<: 1", b"a: &a [1]\n" + b"\n".join(b"b%d: &b%d [%s]" % (n, n,
        b"*a," * 20) for n in range(20)),
        b"seed: !!python/object/apply:os.system [id]", b"seed: !!binary x", b"seed: !!int x", b"seed: !!timestamp x",
        b"seed: 2020-13-45",
        b"seed: 0x" + b"f" * 5000, b"seed: " + b"1" * 5000, b"seed: 1:" + b"59:" * 3000 + b"1", b"seed: 1_0",
        b"seed: 1e400", b"? [a]\n: 1",
        b"? {a: 1}\n: 2", b"seed: 1\nseed: 2", b"%YAML 9.9\n---\nseed: 1", b"---\na: 1\n---\nb: 2", b"seed: *x",
        b"\tseed: 1", b"seed: !!set {a}",
        b"seed: !!omap [a: 1]", b"seed: !!pairs [1]", b"seed: !!null x", b"seed: !!bool x", b"seed: !!float x",
        b"!!set {a: b}", b"x" * 300_000,
    ))  # fmt: skip
    for _ in range(rng.choice((0, 0, 1))):
        text = rng.choice(DAMAGES)(rng, text)
    return text
