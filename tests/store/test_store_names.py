"""Names are safe, pseudonyms repeat only with the key, secrets do not leave."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.errors import ConfigError
from wsipipe.store import Pseudonymizer, check_slide_id, redact_tokens, safe_name, scrub_paths


@given(st.text())
def test_any_text_becomes_a_plain_file_name(text: str) -> None:
    name = safe_name(text)
    assert name.isascii()
    assert 0 < len(name) <= 93
    assert name[0] not in ".-"
    assert "/" not in name


def test_names_that_look_alike_stay_different() -> None:
    names = ["a/b", "a_b", "a b", "a\nb", "A/b", "x" * 80, "x" * 81, "-a", ".a"]
    assert len({safe_name(n) for n in names}) == len(names)
    assert safe_name("TCGA-01.svs") == "TCGA-01.svs"


@pytest.mark.parametrize("bad", ["", "/a", "a/../b", "..", "a//b", "a\nb", "a\x00", "./a"])
def test_ids_that_climb_out_or_forge_lines_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a slide"):
        check_slide_id(bad)


@pytest.mark.parametrize("good", ["a", "case 1/a.b-c", "µ/β"])
def test_ordinary_ids_pass(good: str) -> None:
    assert check_slide_id(good) == good


def test_a_pseudonym_repeats_with_its_key_only(tmp_path: Path) -> None:
    (tmp_path / "k1").write_bytes(b"0123456789abcdef")
    (tmp_path / "k2").write_bytes(b"0123456789abcdeX")
    one, two = Pseudonymizer(tmp_path / "k1"), Pseudonymizer(tmp_path / "k2")
    # HMAC-SHA256 by openssl: printf 'DOE/S1' | openssl dgst -sha256 -hmac 0123456789abcdef
    assert one("DOE/S1") == "p" + EXPECTED[:20]
    assert one("DOE/S1") == Pseudonymizer(tmp_path / "k1")("DOE/S1")
    assert two("DOE/S1") != one("DOE/S1") != one("DOE/S2")


EXPECTED = "8c5f2b6af6df7f6ae4cfb24d217e581174c989f88b51adf7d8ab08201803969e"


def test_a_weak_or_missing_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"short")
    for path in (tmp_path / "k", tmp_path / "gone"):
        with pytest.raises(ConfigError, match="--new-key"):
            Pseudonymizer(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("token hf_" + "A" * 34 + " used", "token hf_*** used"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ('{"authorization": "Basic eHg="}', '{"authorization": "Basic ***"}'),
        ("s3://user:pass@host/b", "s3://***@host/b"),
        ("https://h/x?X-Amz-Signature=0a&y=1", "https://h/x?X-Amz-Signature=***&y=1"),
        ("ghp_" + "a" * 36, "ghp_***"),
        ("hf_hub of the key=value kind", "hf_hub of the key=value kind"),
    ],
)
def test_tokens_are_redacted(text: str, expected: str) -> None:
    assert redact_tokens(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/DOE/a.svs: cut", "…/a.svs: cut"),
        ("at '/data/x/y', line 3", "at '…/y', line 3"),
        (r"C:\slides\a.svs", "…/a.svs"),
        ("https://example.org/a/b stays", "https://example.org/a/b stays"),
        ("1/2 and a/b/c stay", "1/2 and a/b/c stay"),
    ],
)
def test_paths_keep_their_last_part(text: str, expected: str) -> None:
    assert scrub_paths(text) == expected
