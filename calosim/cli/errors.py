"""What parsers say of a command line, in one line that names the option."""

from __future__ import annotations

import re

__all__ = ["one_line"]

#: Leaves of what jsonargparse says: they end the path of keys above them.
_LEAF = re.compile(
    r"^(?:- )?((?:Option |Expected |expected |unrecognized |the following |Type |No |Import|Unexpected ).*)"
)


def one_line(text: str) -> str:
    """The line that matters of a message which tells all types that were tried; any other message in one line.

    >>> one_line('Parser key "data.batch_size":\\n  Expected a <class \\'int\\'>. Got value: many')
    '--data.batch_size: expected int, got many'
    >>> one_line("Does not validate against any of the Union subtypes\\nErrors:\\n  - a.ckpt: expected a checkpoint\\n")
    'a.ckpt: expected a checkpoint'
    """
    if not re.match("Parser key|Does not validate", text):
        return _plain(" ".join(text.split()))
    path: list[tuple[int, str]] = []
    found: list[tuple[int, str, str]] = []
    given = ""
    for line in text.splitlines():
        depth, words = len(line) - len(line.lstrip()), line.strip()
        if key := re.match(r'(?:- )?Parser key "(.+)":', words):
            path = [*((d, k) for d, k in path if d < depth), (depth, key[1])]
        elif leaf := _LEAF.match(words):
            name = ".".join(k for d, k in path if d < depth)
            found.append((len(path), name, leaf[1]))
        elif re.match(r"- .*: expected ", words):
            # What a class said of its settings when it was made.
            found.append((len(path), "", words[2:]))
        elif said := re.match(r"Given value: (.*)", words):
            given = given or said[1]
    if not found:
        return " ".join(text.split())
    # Names of classes are tried as paths too.
    found = [leaf for leaf in found if "a path but" not in leaf[2]] or found
    # A setting's own words come first, then what is said of the innermost one but for the empty value.
    own = [leaf for leaf in found if leaf[2].startswith("expected ") or not _LEAF.match(leaf[2])]
    telling = [leaf for leaf in found if "NoneType" not in leaf[2]]
    inside = max(own or telling or found, key=lambda leaf: leaf[0])
    if own:
        return inside[2]
    same = list(dict.fromkeys(leaf[2] for leaf in telling if leaf[:2] == inside[:2]))
    if inside[2].startswith("Expected a <") and "Got value" not in inside[2]:
        kinds = " or ".join(_kind(leaf.removeprefix("Expected a ")) for leaf in same if leaf.startswith("Expected a "))
        return f"--{inside[1]}: expected {kinds}, got {given}"
    return f"--{inside[1]}: {_plain(inside[2])}"


def _plain(words: str) -> str:
    """A message of jsonargparse in fewer words."""
    words = re.sub(r"^Expected an? (.*?)\. Got value: (.*)$", lambda m: f"expected {_kind(m[1])}, got {m[2]}", words)
    words = re.sub(r"^(?:Type .*: )?Option '(.+?)' is not accepted.*$", r"has no option \1", words)
    words = re.sub(r"^Expected a dot import path string: (.*)$", r"expected the name of a class, got \1", words)
    return re.sub(r"^the following arguments are required: (.*)$", r"expected \1 too", words)


def _kind(words: str) -> str:
    """A type by its name."""
    return re.sub(r"typing\.|<class '(?:[\w.]+\.)?(\w+)'>", lambda m: m[1] or "", words)
