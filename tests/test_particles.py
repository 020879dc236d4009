"""Names and PDG codes of particles are each other's inverse and safe to use in file names."""

from __future__ import annotations

import re

import numpy as np
import pytest

from calosim.particles import STUDY_PARTICLES, groups, particle_code, particle_heading, particle_name, particle_symbol

#: Everything that lives long enough to be a primary of a forward calorimeter, and a few nuclei.
CODES = [
    *(22, 2112, 2212, 3122, 310, 130, 3222, 3112, 211, -211, 321, -321, 11, -11, 13, -13, 12, -12, 14, -14),
    *(-2112, -2212, -3122, -3222, -3112, 3322, -3322, 3312, -3312, 3334, -3334, 1000010020, 1000020040),
]


@pytest.mark.parametrize("code", CODES)
def test_a_name_leads_back_to_its_code(code):
    assert particle_code(particle_name(code)) == code


@pytest.mark.parametrize("code", CODES)
def test_a_code_is_itself_as_a_number_and_as_text(code):
    assert particle_code(code) == particle_code(str(code)) == particle_code(f" {code} ") == code


def test_names_are_distinct_and_safe_in_file_names_and_metric_keys():
    names = [particle_name(code) for code in CODES]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[a-z0-9_+-]+", name), name


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Gamma", 22),
        ("photon", 22),
        ("NEUTRON", 2112),
        ("n", 2112),
        ("p", 2212),
        ("Lambda", 3122),
        ("K0S", 310),
        ("kshort", 310),
        ("K(S)0", 310),
        ("Sigma+", 3222),
        ("pi-", -211),
        ("Xi-", 3312),
        ("Omega-", 3334),
    ],
)
def test_common_spellings(name, code):
    assert particle_code(name) == code


@pytest.mark.parametrize("name", ["lamda", "", "K", "pi"])
def test_unknown_names_are_named(name):
    with pytest.raises(ValueError, match=rf"unknown particle '{name}'; expected a PDG code or a name such as gamma"):
        particle_code(name)


@pytest.mark.parametrize("call", [particle_code, particle_name, particle_symbol])
def test_unknown_codes_are_named(call):
    with pytest.raises(ValueError, match="unknown PDG code 123456789"):
        call(123456789)


def test_nuclei_that_the_tables_lack_are_called_by_their_code():
    assert particle_name(1010010030) == "nucleus_1010010030"
    assert particle_symbol(1010010030) == "1010010030"
    assert {particle_code(name) for name in (1010010030, "1010010030", "nucleus_1010010030")} == {1010010030}


def test_symbols():
    assert [particle_symbol(c) for c in STUDY_PARTICLES] == ["γ", "n", "Λ", "K⁰S", "Σ⁺"]
    others = (-2112, -3122, 130, -211, -3322, 1000010020, 331, -11)
    assert [particle_symbol(c) for c in others] == ["n̄", "Λ̄", "K⁰L", "π⁻", "Ξ̄⁰", "²D", "η′(958)", "e⁺"]
    assert [particle_heading(name) for name in ("all", "antilambda", "k0s")] == ["all", "Λ̄", "K⁰S"]


@pytest.mark.parametrize("code", CODES)
def test_symbols_are_letters_and_no_markup(code):
    assert re.fullmatch(r"[^<>&~_()a-z]*[a-zγ-ωΑ-ΩK]\u0304?[⁰⁺⁻SLeμ]*|²D|⁴He", particle_symbol(code))


def test_groups_are_all_rows_then_each_type_by_ascending_code():
    pdg = np.array([2112, 22, -211, 22])
    found = list(groups(pdg))
    assert [name for name, _ in found] == ["all", "pi-", "gamma", "neutron"]
    assert found[0][1].all()
    np.testing.assert_array_equal(sum(mask.astype(int) for _, mask in found[1:]), 1)  # each row is of one type
    for name, mask in found[1:]:
        assert set(pdg[mask]) == {particle_code(name)}
    assert [(name, len(mask)) for name, mask in groups(np.array([], int))] == [("all", 0)]
