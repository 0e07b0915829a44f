"""Text that may be shown, kept and sent: without secrets, and without characters that a terminal acts on.

Every sentence for users goes through here (``HeadstartError``, ``terminal.say``, ``terminal.console``), and so does what
addresses of ``params.yaml`` and of the environment get into: the summary of a round, MLflow's parameters and tags, pages
and cards.
"""

from __future__ import annotations

import json
import re
import reprlib
import unicodedata
from typing import Any

# An address and what follows it without a space: a password may hold any sign.
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)(\S+)")
# What stands before an address's first slash, question mark or hash, where it is more than host and port.
NAMED = re.compile(r"(?:\[[0-9A-Fa-f:.]*\])?+[^/?#]*(@|:(?!\d*(?:[/?#,;\"'`)\]}]|$)))")
ENDS_A_SENTENCE = "\"'`.,:;!?)]}>…"
HIDDEN = "***"
PUBLIC = {"viewStateShareKey"}  # of a page of MLflow's: which of its saved views
JOINERS = "\u200c\u200d"  # they shape words of Persian and Hindi, and emoji of several persons
LONGEST, READ = 4000, 100_000  # characters of a sentence, and of what is looked at to make one


def masked(text: str) -> str:
    """``text`` without what addresses in it say besides where to go: ``https://***@host/a.zip?token=***``.

    Hidden are the password, the user of a web address, also where the text ends within them, and the values of the query;
    and a password's parts wherever else they stand in ``text``: who cannot parse an address quotes some of it.
    """
    if "://" not in text:
        return text
    secrets: set[str] = set()
    text = ADDRESS.sub(lambda found: _without_secrets(found[1], found[2], secrets), text)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _without_secrets(scheme: str, rest: str, secrets: set[str]) -> str:
    """An address without its secrets; those that are long enough to be told from words are added to ``secrets``."""
    if NAMED.match(rest):
        before, at, after = rest.rpartition("@")  # the last one: passwords may hold more
        if not at:
            return f"{scheme}{HIDDEN}"
        user, colon, password = before.partition(":")
        secrets |= {part for part in re.split(r"[:/?#@]", password if colon else user) if len(part) > 3}
        # Of a web address the user may be the secret, as with GitHub's tokens.
        rest = f"{user}:{HIDDEN}@{after}" if colon and not scheme.lower().startswith("http") else f"{HIDDEN}@{after}"
    start, inner = re.search(r"[?#]", rest), ADDRESS.search(rest)
    if inner and (start is None or inner.start() < start.start()):
        return scheme + rest[: inner.start()] + _without_secrets(inner[1], inner[2], secrets)
    if start is None:
        return scheme + rest
    query = rest[start.end() :].rstrip(ENDS_A_SENTENCE)
    hidden = "&".join(_without_value(part, start[0]) for part in query.split("&"))
    return scheme + rest[: start.end()] + hidden + rest[start.end() + len(query) :]


def _without_value(part: str, sign: str) -> str:
    key, equals, _ = part.partition("=")
    if re.split(r"[?#]", key)[-1] in PUBLIC:
        return part
    return f"{key}={HIDDEN}" if equals else HIDDEN if part and sign == "?" else part  # a place in a page is no secret


def masked_values(value: Any) -> Any:
    """A value of JSON with each text in it masked."""
    if isinstance(value, dict):
        return {key: masked_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(one) for one in value]
    return masked(value) if isinstance(value, str) else value


def visible(text: str, keep: str = "") -> str:
    r"""``text`` with JSON's escapes for line ends, escape codes, signs that turn the direction of writing, and what is no
    character: ``\n``, ``\u001b``.

    Args:
        keep: characters that stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(sign if sign in keep or _is_visible(sign) else json.dumps(sign)[1:-1] for sign in text)


def _is_visible(sign: str) -> bool:
    return sign.isprintable() or sign in JOINERS or unicodedata.category(sign) == "Zs"


def shortened(text: str, most: int) -> str:
    """A line of at most ``most`` characters, masked before it is cut; of a longer text the end and twice as much of the
    beginning."""
    line = masked(" ".join(text.split()))
    if len(line) <= most:
        return line
    end = (most - 3) // 3
    return f"{line[: most - 3 - end]} … {line[-end:]}"


def sentence(text: str) -> str:
    """A sentence for users: masked, visible, on one line and of no more than LONGEST characters."""
    safe = visible(masked(text if len(text) <= READ else f"{text[:READ]}…"))
    return safe if len(safe) <= LONGEST else shortened(safe, LONGEST)


def quoted(value: object) -> str:
    """A value that is refused, as Python writes it, and not all of it where it is long."""
    text = _written.repr(value)
    return text if len(text) <= LONGEST_QUOTED else shortened(text, LONGEST_QUOTED)


LONGEST_QUOTED = 120  # characters
_written = reprlib.Repr()
_written.maxlevel, _written.maxlist, _written.maxdict = 3, 10, 10
_written.maxstring = _written.maxother = LONGEST_QUOTED
