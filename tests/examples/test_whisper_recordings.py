"""What of a prompt's text is spoken, and the manifest that comes of packages as they unpack."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.append(str(Path(__file__).parents[2] / "examples" / "whisper"))
import recordings

from affinity_pool.study.data import open_data


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("[this is a simple beep tone]", ""),
        ("(10 seconds of silence)", ""),
        ("<beep decending>", ""),
        ("at [@]", "at"),
        ("... letters of your party's last name.", "letters of your party's last name."),
        ('IAX (note: does not say "2")', "IAX"),
        ("press * or  # to exit", "press star or pound to exit"),
        ("Un-indentified or witheld", "unidentified or withheld"),
    ],
)
def test_what_is_not_spoken_is_no_text(written: str, spoken: str) -> None:
    assert recordings.said(written) == spoken


def test_a_set_is_a_manifest_of_what_is_spoken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sounds = tmp_path / "usr/share/asterisk/sounds/en_US_f_Allison"
    texts = tmp_path / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    texts.parent.mkdir(parents=True)
    texts.write_bytes(
        gzip.compress(b"; English\n\nletters/at: at [@]\nbeep: [a tone]\nlong: Hello: you.\nnowhere: No.\n")
    )
    for name, seconds in (("letters/at", 1), ("beep", 1), ("long", 31)):
        (sounds / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(sounds / f"{name}.wav", np.sin(np.arange(seconds * 8000)), 8000)
    manifest = recordings.make("asterisk", tmp_path, tmp_path / "sets")
    assert [(one.id, one.text, one.language) for one in open_data(manifest)] == [
        ("letters/at", "at", "en"),
        ("long", "Hello: you.", "en"),
    ]
    assert all(one.load(16000).seconds in (1, 31) for one in open_data(manifest))
    told = capsys.readouterr().out
    assert "long.wav has 31.0 s" in told
    assert "nothing is said in 1, left out: beep.wav" in told


def test_the_command_says_what_it_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wanted, said in (("librivox", "cannot make the set librivox from"), ("ted", "SET must be one of asterisk")):
        monkeypatch.setattr(sys, "argv", ["recordings.py", str(tmp_path), str(tmp_path / "sets"), wanted])
        with pytest.raises(SystemExit, match="2"):
            recordings.main()
        assert said in capsys.readouterr().err
