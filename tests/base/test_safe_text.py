"""What is said, kept and sent holds no secret of an address, and nothing that a terminal acts on."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.base import terminal
from headstart.base.errors import HeadstartError
from headstart.base.safe_text import LONGEST, masked, masked_values, quoted, sentence, shortened, visible

# A password may hold any sign, also those that end a host or an address.
PASSWORDS = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=("Cc", "Zs")), max_size=12).map(
    lambda rest: f"Geheim7{rest}"
)
SENTENCES = ("{}", "MLflow at {} does not answer (refused); start it", "data.source '{}' is unknown", "<{}>, see there")


@pytest.mark.parametrize("form", SENTENCES)
@pytest.mark.parametrize("address", ["http://anna:{}@host:50/x", "https://{}@host/x", "postgresql+psycopg2://a:{}@db/m"])
@given(secret=PASSWORDS)
def test_a_password_or_token_before_the_host_is_never_said(form: str, address: str, secret: str) -> None:
    if ":{}" not in address and any(sign in secret for sign in "/?#"):
        return  # then it is a host, and what follows a path
    said = str(HeadstartError(form.format(address.format(secret))))
    assert secret not in said
    assert "Geheim7" not in said
    assert "***" in said


@pytest.mark.parametrize("form", SENTENCES)
@pytest.mark.parametrize("key", ["token", "key", "X-Amz-Signature", "sig", "password", "any"])
@given(secret=PASSWORDS.filter(lambda secret: not set(secret) & set("&#")))
def test_the_values_of_a_query_are_never_said(form: str, key: str, secret: str) -> None:
    said = masked(form.format(f"https://host/pets.zip?v=1&{key}={secret}"))
    assert "Geheim7" not in said
    assert f"https://host/pets.zip?v=***&{key}=***" in said


@given(secret=PASSWORDS, length=st.integers(0, 60))
def test_an_address_that_is_cut_off_is_masked_first(secret: str, length: int) -> None:
    assert "Geheim7" not in shortened(f"unable to access http://anna:{secret}@host/x and so on", length + 20)
    assert "Geheim7" not in masked(f"http://anna:{secret}"[: length + 20])


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000 answers", "http://[::1]:5000/x", "sqlite:////srv/a@b/mlflow.db", "s3://bucket/pets",
        "file:///srv/pets", "https://host/@scope/name", "(see http://host:80)", "https://host/page#part", "C:/a:b@c",
        "anna@example.org", "http://host:8080", "http://h:5000/#/experiments/1/runs?viewStateShareKey=headstart",
    ],
)  # fmt: skip
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("postgresql://anna:a@b@db:5432/m", "postgresql://anna:***@db:5432/m"),
        ("https://TOKEN:x-oauth-basic@host/r.git", "https://***@host/r.git"),
        ("https://host/a.zip?TOKEN'; no", "https://host/a.zip?***'; no"),
        ("http://a/,http://u:pw@h/x,s3://b", "http://a/,http://***@h/x,s3://b"),
        ("zip://a.zip::https://u:pw@h/a.zip?k=v", "zip://a.zip:***@h/a.zip?k=***"),
        ("http://u:se/cret#1@host is not valid: Port could not be cast: 'cret'", "http://***@host is not valid: Port could "
         "not be cast: '***'"),
    ],
)  # fmt: skip
def test_where_an_address_leads_is_still_said(text: str, said: str) -> None:
    assert masked(text) == said


def test_every_text_in_a_value_is_masked() -> None:
    value = {"a": ["http://u:pw@h", 1, None, True], "b": {"c": "https://h?k=v"}}
    assert masked_values(value) == {"a": ["http://***@h", 1, None, True], "b": {"c": "https://h?k=***"}}


# --- control characters -----------------------------------------------------------------------------------------------


@given(st.text(st.characters()))  # surrogates too
def test_a_sentence_is_one_line_that_a_terminal_does_not_act_on(text: str) -> None:
    said = sentence(text)
    assert len(said) <= LONGEST
    assert all(sign.isprintable() or sign in "\u200c\u200d" or unicodedata.category(sign) == "Zs" for sign in said)
    said.encode()  # a file's name need not be text; what is said of it is


@given(st.text(st.characters()))
def test_what_is_escaped_is_json_that_says_the_same(text: str) -> None:
    escaped = visible(json.dumps({"name": text}, ensure_ascii=False))
    assert json.loads(escaped) == json.loads(json.dumps({"name": text}))


@pytest.mark.parametrize("name", ["猫　写真", "می‌خواهم", "👨‍👩‍👧", "a b", "naïve", "Ω"])
def test_names_in_any_script_stay_as_they_are(name: str) -> None:
    assert visible(name) == name


FORGED = "cat\nok: 99.9%  dog\r\x1b[2K\x9b1m\u202e\u2028"


def test_a_line_that_is_printed_is_one_line_also_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    terminal.say(FORGED, f"http://u:Geheim@h/{FORGED}")
    table = Table(FORGED)
    table.add_row(FORGED)
    terminal.console().print(table)
    terminal.console().print(FORGED)
    out = capsys.readouterr().out
    assert not set(out) & set("\r\x1b\x9b\u202e\u2028")
    assert "Geheim" not in out
    assert sum(line.startswith("ok:") for line in out.splitlines()) == 0


def test_json_that_is_printed_keeps_its_lines_and_escapes_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say_json({"name": FORGED}, indent=2)
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": FORGED}
    assert len(out.splitlines()) == 3
    assert not set(out) & set("\x1b\x9b\u202e\u2028")


def test_a_defect_is_a_traceback_without_the_secrets_that_it_quotes(tmp_path: Path) -> None:
    code = (
        "from headstart.base.errors import run_cleanly\n"
        "def main(): raise LookupError('http://anna:Geheim7@host')\n"
        "run_cleanly(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "LookupError: http://***@host" in done.stderr
    assert "Traceback" in done.stderr


# --- what is long -----------------------------------------------------------------------------------------------------


@given(st.text(), st.integers(20, 400))
def test_what_is_shortened_has_its_beginning_and_its_end(text: str, most: int) -> None:
    line = " ".join(text.split())
    short = shortened(text * 9, most)
    assert len(short) <= most
    assert short[: most // 2].startswith(masked(line)[:5])


@pytest.mark.parametrize("value", ["x" * 5_000_000, list(range(10**6)), {str(n): n for n in range(10**5)}, b"x" * 10**6])
def test_a_value_of_megabytes_is_not_quoted_whole(value: object) -> None:
    assert len(quoted(value)) <= 130
    assert len(str(HeadstartError(f"found {value}"))) <= LONGEST


def test_short_values_are_quoted_as_they_are() -> None:
    for value in ("a  b", ["lr", 0.1], {"a": None}, 10**30, True, -0.5):
        assert quoted(value) == repr(value)
    assert quoted("\n") == "'\\n'"
