"""Data sets of `datasets`, made here in the layouts of LibriSpeech, FLEURS and CoVoST 2."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile

from affinity_pool.study.data import open_data
from affinity_pool.study.errors import InputError

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


def test_a_data_set_s_recordings_are_known_by_their_contents(tmp_path: Path) -> None:
    from affinity_pool.study.data.digests import of_audio

    for name, seconds in (("a", 0.5), ("b", 0.6), ("c", 0.5)):
        (tmp_path / name).mkdir()
        rows(audio=[recording(seconds)], text=["x"]).to_parquet(tmp_path / name / "test.parquet")
    found = [of_audio(open_data(str(tmp_path / name))) for name in "ab"]
    assert found[0] != found[1]
    assert of_audio(open_data(str(tmp_path / "a"))) == found[0]


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


def parquet(folder: Path, *entries: dict[str, Any]) -> Path:
    """A data set of one split as pyarrow writes it: its columns are of no kind of `datasets`'."""
    pyarrow = pytest.importorskip("pyarrow.parquet")
    folder.mkdir(parents=True, exist_ok=True)
    table = sys.modules["pyarrow"].Table.from_pylist(list(entries))
    pyarrow.write_table(table, folder / "test-00000.parquet")
    return folder


def test_of_a_text_for_each_language_the_configurations_second_is_the_reference(tmp_path: Path) -> None:
    texts = {"en": "five nine", "de": "fünf neun"}
    rows(audio=[recording(0.5)], translation=[texts]).save_to_disk(tmp_path / "saved")
    (utterance,) = open_data(f"{tmp_path / 'saved'}:en_de")
    assert (utterance.text, utterance.task, utterance.language) == ("fünf neun", "translate", "de")
    for config in ("", ":en_fr", ":default"):
        with pytest.raises(InputError, match=r"'translation' has texts in .*: give a pair"):
            open_data(f"{tmp_path / 'saved'}{config}")


@pytest.mark.parametrize("column", ["text", "id", "translation", "language"])
@pytest.mark.parametrize("value", [["five", "nine"], {"a": 1}, {"en": ["five"]}, 5.5, True, b"five", [[1]]])
def test_a_column_that_holds_no_texts_is_refused(tmp_path: Path, column: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"'{column}' (must hold texts, but holds|has texts in)"):
        open_data(parquet(tmp_path, {"audio": recording(0.5), column: value}))


def test_numbers_are_ids_and_texts_as_they_are_written(tmp_path: Path) -> None:
    (utterance,) = open_data(parquet(tmp_path, {"audio": recording(0.5), "text": 5, "id": 7}))
    assert (utterance.id, utterance.text) == ("7", "5")


def test_paths_are_relative_to_the_data_set_and_named_when_nothing_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(recording(0.5)["bytes"])
    (tmp_path / "test.csv").write_text("audio,text\na.flac,five\nb.flac,six\n")
    first, second = open_data(tmp_path)
    assert first.load(16000).seconds == pytest.approx(0.5)
    with pytest.raises(InputError, match=r"no such recording: .*/b\.flac"):
        second.load(16000)
    (utterance,) = open_data(parquet(tmp_path / "far", {"audio": {"bytes": None, "path": "/nowhere/x.flac"}}))
    with pytest.raises(InputError, match=r"no such recording: /nowhere/x\.flac"):
        utterance.load(16000)


@pytest.mark.parametrize("audio", [{"array": [0.1] * 1600, "sampling_rate": 16000}, [0.1] * 1600, 5, {"file": "a"}])
def test_an_audio_column_of_something_else_is_refused(tmp_path: Path, audio: Any) -> None:
    with pytest.raises(InputError, match="'audio' must hold files, their bytes or their paths, but holds"):
        open_data(parquet(tmp_path, {"audio": audio, "text": "five"}))


def test_a_split_or_configuration_that_a_saved_data_set_does_not_have_is_refused(tmp_path: Path) -> None:
    plain = rows(audio=[recording(0.5)], text=["one"])
    plain.save_to_disk(tmp_path / "plain")
    datasets.Dataset(plain.data, info=plain.info, split=datasets.Split.TRAIN).save_to_disk(tmp_path / "train")
    assert len(open_data(f"{tmp_path / 'train'}::train")) == 1
    for spec, message in {
        "plain::test": "has no splits, got 'test'",
        "train::nope": "has the split train alone, got 'nope'",
        "plain:clean": "saved without configurations, got 'clean'",
    }.items():
        with pytest.raises(InputError, match=message):
            open_data(tmp_path / spec)


def test_whatever_datasets_raises_becomes_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fleurs").mkdir()
    (tmp_path / "fleurs" / "fleurs.py").write_text("import datasets\n")
    with pytest.raises(InputError, match=r"scripts are no longer supported.*; the Hub's copy in Parquet can be read"):
        open_data(tmp_path / "fleurs")
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.flac").write_bytes(recording(0.5)["bytes"])
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(InputError, match="or write a manifest"):
        open_data(tmp_path / "sounds")
    parquet(tmp_path / "cut", {"audio": recording(0.5)})
    file = tmp_path / "cut" / "test-00000.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot open .*cut"):
        open_data(tmp_path / "cut")
    for error in (RuntimeError("gone"), KeyError("gone"), AssertionError("gone"), NotImplementedError("gone")):
        monkeypatch.setattr(datasets, "load_dataset_builder", Mock(side_effect=error))
        with pytest.raises(InputError, match=r"cannot open a/b, which is no manifest, as a data set: .*gone"):
            open_data("a/b")


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
        "::test": r"ID\[@REVISION\]\[:CONFIG\[:SPLIT\]\], got '::test'",
        "a:b:c:d": r"ID\[@REVISION\]\[:CONFIG\[:SPLIT\]\]",
    }.items():
        with pytest.raises(InputError, match=message):
            open_data(spec)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        open_data("openslr/librispeech_asr:clean:test")
