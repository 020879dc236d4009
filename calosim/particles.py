"""Names of particle types: PDG codes, the short names used on the command line, and their printed form."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from particle import Particle

__all__ = [
    "STUDY_PARTICLES",
    "groups",
    "lookup",
    "particle_code",
    "particle_heading",
    "particle_name",
    "particle_symbol",
]

#: Short names for the particles people select; any other name known to the ``particle`` package works as well.
_CODES: dict[str, int] = {
    "gamma": 22,
    "neutron": 2112,
    "proton": 2212,
    "lambda": 3122,
    "k0s": 310,
    "k0l": 130,
    "sigma+": 3222,
    "sigma-": 3112,
    "pi+": 211,
    "pi-": -211,
    "k+": 321,
    "k-": -321,
    "electron": 11,
    "positron": -11,
    "antineutron": -2112,
    "antiproton": -2212,
    "antilambda": -3122,
}
#: How the names of nuclei begin that the tables do not name; their code follows.
_NUCLEUS = "nucleus_"
#: Digits and signs above the line.
_RAISED = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")
_NAMES: dict[int, str] = {code: name for name, code in _CODES.items()}
_ALIASES: dict[str, int] = {
    "photon": 22,
    "n": 2112,
    "p": 2212,
    "sigmaplus": 3222,
    "k-short": 310,
    "kshort": 310,
    "k-long": 130,
}

#: The particle types of the published fine-tuning study (Majerz et al., 2026, arXiv 2608.12795), in its order.
STUDY_PARTICLES: tuple[int, ...] = (22, 2112, 3122, 310, 3222)


@lru_cache
def particle_name(pdg: int) -> str:
    """The short name of a PDG code, safe in file names and metric keys (``gamma``, ``k0s``, ``sigma+``).

    Args:
        pdg: A PDG Monte Carlo code.

    Raises:
        ValueError: If the code is not in the PDG tables.
    """
    if pdg in _NAMES:
        return _NAMES[pdg]
    found = lookup(pdg)
    return f"{_NUCLEUS}{pdg}" if found is None else found.programmatic_name.lower()


@lru_cache
def particle_symbol(pdg: int) -> str:
    """The PDG's symbol of a code in Unicode, for everything that people read: ``γ``, ``K⁰S``, ``Λ̄``, ``π⁻``.

    Args:
        pdg: A PDG Monte Carlo code.

    Raises:
        ValueError: If the code is not in the PDG tables.
    """
    if pdg in (310, 130):
        return {310: "K⁰S", 130: "K⁰L"}[pdg]  # Unicode has no such letters below the line
    found = lookup(pdg)
    if found is None:
        return str(pdg)
    # A macron: fonts draw it over a letter, where an overline may start beside it.
    text = html.unescape(found.html_name).replace("\u0305", "\u0304")
    return re.sub("<.*?>", "", re.sub("<SUP>(.*?)</SUP>", lambda m: m[1].translate(_RAISED), text))


def particle_heading(name: str) -> str:
    """What tables and pictures call ``all``, or a particle type that files and options call by its short name."""
    return name if name == "all" else particle_symbol(particle_code(name))


def particle_code(name: str | int) -> int:
    """The PDG code of a particle given by name or code.

    Args:
        name: A PDG code (``3122`` or ``"3122"``), a short name in any case (``lambda``, ``k0s``, ``sigma+``) or a name
            of the ``particle`` package (``Lambda``, ``K(S)0``, ``xi_minus``).

    Raises:
        ValueError: If nothing matches.
    """
    text = str(name).strip()
    if text.lower() in _CODES:
        return _CODES[text.lower()]
    if text.lower() in _ALIASES:
        return _ALIASES[text.lower()]
    if (number := text.removeprefix(_NUCLEUS)).lstrip("+-").isdigit():
        lookup(int(number))
        return int(number)
    # As spelled first: names are printed in lower case, but some particles differ by their case alone.
    for fold in (str, str.lower):
        found = _spellings(fold).get(fold(text), ())
        if len(found) == 1:
            return next(iter(found))
    raise ValueError(f"unknown particle {name!r}; expected a PDG code or a name such as {', '.join(list(_CODES)[:7])}")


def groups(pdg: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """All rows, then those of each particle type, as every table lists them.

    Args:
        pdg: PDG codes with shape (N,).

    Yields:
        ``all`` with a mask of N times true, then each type's name and mask with shape (N,), by ascending PDG code.
    """
    yield "all", np.ones(len(pdg), dtype=bool)
    for code in np.unique(pdg):
        yield particle_name(int(code)), pdg == code


@lru_cache
def _spellings(fold: Callable[[str], str]) -> dict[str, set[int]]:
    """Codes by the names of the ``particle`` package."""
    from particle import Particle  # slow to import, and only needed for rare particles

    spellings: dict[str, set[int]] = {}
    for particle in Particle.all():
        for name in (particle.name, particle.programmatic_name):
            spellings.setdefault(fold(name), set()).add(int(particle.pdgid))
    return spellings


def lookup(pdg: int) -> Particle | None:
    """What the PDG tables have on a code; None for nuclei that they lack, such as hypernuclei.

    Raises:
        ValueError: If it is no code of the PDG Monte Carlo numbering scheme.
    """
    from particle import PDGID, InvalidParticle, Particle, ParticleNotFound  # reading its tables costs 0.2 s

    try:
        return Particle.from_pdgid(pdg)
    except (InvalidParticle, ParticleNotFound):
        if PDGID(pdg).is_nucleus:
            return None
        raise ValueError(f"unknown PDG code {pdg}; expected a code of the PDG Monte Carlo numbering scheme") from None
