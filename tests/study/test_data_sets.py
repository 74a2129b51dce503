"""Data sets of `datasets`, made here in the layouts of LibriSpeech, FLEURS and CoVoST 2."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from affinity_pool.study import InputError
from affinity_pool.study.data import open_data

datasets = pytest.importorskip("datasets")


def recording(seconds: float, rate: int = 16000, kind: str = "FLAC") -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate)), rate, format=kind)
    return {"bytes": file.getvalue(), "path": f"{seconds}.{kind.lower()}"}


def rows(**columns: list[Any]) -> Any:
    return datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=False))


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files of two configurations; the training data is damaged."""
    path = tmp_path_factory.mktemp("data") / "librispeech"
    (path / "clean").mkdir(parents=True)
    card = "configs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n" + "".join(f"  - split: {s}\n    path: {name}/{s}-*\n" for s in splits)
        for name, splits in (("clean", ("train", "test")), ("other", ("test",)))
    )
    (path / "README.md").write_text(f"---\n{card}---\n")
    test = rows(
        audio=[recording(0.5), recording(0.7, 8000, "WAV"), {"bytes": b"junk", "path": "x.flac"}],
        text=["CHAPTER ONE", "TWO", "THREE"],
        speaker_id=[1, 1, 2],
        id=["1-2-0000", "1-2-0001", "2-2-0000"],
    )
    test.to_parquet(path / "clean" / "test-00000-of-00001.parquet")
    (path / "clean" / "train-00000-of-00001.parquet").write_bytes(b"damaged")
    (path / "other").mkdir()
    test.select([0]).to_parquet(path / "other" / "test-00000-of-00001.parquet")
    return path


def test_librispeech_is_transcribed_in_english_and_only_its_split_is_touched(librispeech: Path) -> None:
    first, second, third = open_data(f"{librispeech}:clean:test")
    assert (first.id, first.text, first.task, first.language) == ("1-2-0000", "CHAPTER ONE", "transcribe", "en")
    assert first.load(16000).seconds == pytest.approx(0.5)
    assert second.load(16000).seconds == pytest.approx(0.7)
    with pytest.raises(InputError, match="cannot read 2-2-0000: "):
        third.load(16000)


def test_the_split_is_the_only_one_or_test_when_none_is_given(librispeech: Path, tmp_path: Path) -> None:
    assert len(open_data(f"{librispeech}:clean")) == 3
    assert len(open_data(f"{librispeech}:other")) == 1
    saved = datasets.DatasetDict({name: rows(audio=[recording(0.5)], text=["one"]) for name in ("train", "dev")})
    saved.save_to_disk(tmp_path / "saved")
    assert [utterance.id for utterance in open_data(f"{tmp_path / 'saved'}::dev")] == ["0"]
    with pytest.raises(InputError, match=r"has the splits train, dev: give one, as .*:CONFIG:train"):
        open_data(tmp_path / "saved")


def test_fleurs_tells_the_language_and_its_shared_ids_are_told_apart(tmp_path: Path) -> None:
    data = rows(
        audio=[recording(0.5)] * 3,
        id=[7, 7, 9],
        transcription=["eins", "eins", "two"],
        raw_transcription=["Eins.", "Eins.", "Two."],
        lang_id=[1, 1, 0],
        language=["German", "German", "English"],
    ).cast_column("lang_id", datasets.ClassLabel(names=["en_us", "de_de"]))
    data.save_to_disk(tmp_path / "fleurs")
    utterances = open_data(tmp_path / "fleurs")
    assert [utterance.id for utterance in utterances] == ["7#0", "7#1", "9"]
    assert [utterance.language for utterance in utterances] == ["de_de", "de_de", "en_us"]
    assert utterances[0].text == "eins"


def test_a_revision_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def builder(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        raise ValueError("no Hub here")

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    with pytest.raises(InputError, match="no Hub here"):
        open_data("google/fleurs@refs/convert/parquet:en_us:test")
    assert asked == [(("google/fleurs", "en_us"), {"revision": "refs/convert/parquet"})]


def test_covost_has_the_translation_as_its_reference(tmp_path: Path) -> None:
    (tmp_path / "en_zh-CN").mkdir()
    data = rows(audio=[recording(0.5, 48000, "MP3")], id=["x"], sentence=["two"], translation=["二"])
    data.to_parquet(tmp_path / "en_zh-CN" / "test.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en_zh-CN\n  data_files:\n  - split: test\n    path: en_zh-CN/test*\n---\n"
    )
    (utterance,) = open_data(f"{tmp_path}:en_zh-CN:test")
    assert (utterance.text, utterance.task, utterance.language) == ("二", "translate", "zh-CN")
    assert utterance.load(16000).seconds == pytest.approx(0.5, abs=0.1)


def test_a_row_without_a_recording_is_a_problem_of_that_row(tmp_path: Path) -> None:
    rows(audio=[recording(0.5), None], text=["one", None]).save_to_disk(tmp_path / "saved")
    first, second = open_data(tmp_path / "saved")
    assert first.load(16000).seconds == pytest.approx(0.5)
    assert second.text is None
    with pytest.raises(InputError, match="row 1 has no recording"):
        second.load(16000)


def test_what_is_no_data_set_is_refused_in_words(
    librispeech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.Dataset.from_dict({"sound": ["a.wav"]}).save_to_disk(tmp_path / "silent")
    (tmp_path / "none").mkdir()
    rows(audio=[recording(0.5)], text=["one"]).select([]).to_parquet(tmp_path / "none" / "test.parquet")
    (tmp_path / "nothing").mkdir()
    for spec, message in {
        str(tmp_path / "silent"): "has no column 'audio', only sound",
        str(tmp_path / "none"): "corresponds to no data",
        str(tmp_path / "nothing"): "cannot open .*, which is no manifest, as a data set",
        f"{librispeech}:dirty": "cannot open .*'dirty' not found",
        f"{librispeech}:clean:dev": "has the splits train, test: give one",
        "a:b:c:d": r"ID\[@REVISION\]\[:CONFIG\[:SPLIT\]\]",
    }.items():
        with pytest.raises(InputError, match=message):
            open_data(spec)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        open_data("openslr/librispeech_asr:clean:test")
