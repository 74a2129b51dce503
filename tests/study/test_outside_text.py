"""Word times, data sets and texts from elsewhere: understood or named, and text stays text wherever it is shown."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affinity_pool.study import InputError
from affinity_pool.study.data import Audio, Utterance, Word, open_data
from affinity_pool.study.data.alignment import is_word, word_times
from affinity_pool.study.groups import Span
from affinity_pool.study.report import page
from affinity_pool.study.report.groups_picture import Picture, Row, chart, draw

AUDIO = Audio(np.ones(16000 * 4, np.float32), 16000)


# TextGrids.


def grid(*labels: str, kind: str = "IntervalTier", name: str = "words", step: float = 0.5) -> str:
    """A TextGrid of one tier."""
    points = kind == "TextTier"
    body = "".join(
        f'        points [{i}]:\n            number = {i * step}\n            mark = "{label}"\n'
        if points
        else f"        intervals [{i}]:\n            xmin = {(i - 1) * step}\n            xmax = {i * step}\n"
        f'            text = "{label}"\n'
        for i, label in enumerate(labels, 1)
    )
    end = len(labels) * step
    return (
        f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = {end}\ntiers? <exists>\nsize = 1\n'
        f'item []:\n    item [1]:\n        class = "{kind}"\n        name = "{name}"\n        xmin = 0\n'
        f"        xmax = {end}\n        {'points' if points else 'intervals'}: size = {len(labels)}\n{body}"
    )


def times(tmp_path: Path, content: str | bytes) -> tuple[Word, ...]:
    path = tmp_path / "a.TextGrid"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return word_times(Utterance("a", tmp_path / "a.wav", "x"), AUDIO, tmp_path)


def test_markers_of_a_words_tier_are_no_words(tmp_path: Path) -> None:
    marks = [
        "[noise]",
        "{LG}",
        "<SIL>",
        "<eps>",
        "SIL",
        "sp",
        "Spn",
        "",
        "[laughter]",
        "<unk>",
        "(coughs)",
        "#",
        " sil ",
    ]
    assert not any(map(is_word, marks))
    words = ["five", "sill", "<", "[", "a#", "it's", "(un)likely", "五"]
    assert all(map(is_word, words))
    found = times(tmp_path, grid("[noise]", "five", "{LG}", "<SIL>", "nine", "sil"))
    assert [word.text for word in found] == ["five", "nine"]


def test_a_tier_of_points_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*a\.TextGrid: its tier 'words' holds points"):
        times(tmp_path, grid("five", "nine", kind="TextTier"))


GRIDS = {
    "empty": b"",
    "binary": bytes(range(256)) * 4,
    "cut": grid("five", "nine")[:200].encode(),
    "backwards": grid("five", "nine").replace("xmax = 1.0", "xmax = 0.2").encode(),
    "before its beginning": grid("five").replace("xmin = 0.0", "xmin = -1.0").encode(),
    "no numbers": grid("five").replace("0.5", "soon").encode(),
    "NaN": grid("five").replace("0.5", "nan").encode(),
    "infinite": grid("five").replace("xmax = 0.5", "xmax = inf").encode(),
    "Latin-1": grid("caf\xe9").encode("latin-1"),
    "no words": grid("", "sil", "[noise]").encode(),
    "another tier": grid("f", name="phones").encode(),
    "JSON": b'{"start": 0, "end": 1, "tiers": {"words": 3}}',
}


@pytest.mark.parametrize("name", GRIDS)
def test_damaged_textgrids_are_named(tmp_path: Path, name: str) -> None:
    try:
        words = times(tmp_path, GRIDS[name])
    except InputError as error:
        assert "a.TextGrid" in str(error)  # noqa: PT017
        return
    assert name == "Latin-1", words  # which praatio may be able to read


@settings(max_examples=int(os.environ.get("AFFINITY_POOL_FUZZ", 200)), deadline=None)
@given(st.data())
def test_any_textgrid_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(grid("five", "sil", "nine").encode(data.draw(st.sampled_from(["utf-8", "utf-16"]))))
    for _ in range(data.draw(st.integers(0, 4))):
        at, length = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 20))
        content[at : at + length] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"", b'"', b"-", b"nan", b"1e999", b"intervals [1]:", b"\n" * 3])
        )
    folder = tmp_path_factory.getbasetemp()
    try:
        words = times(folder, bytes(content))
    except InputError:
        return
    assert words
    assert all(0 <= word.start < word.end for word in words)


# Data sets.

datasets = pytest.importorskip("datasets")
VOICE = {"bytes": None, "path": None}


def parquet(folder: Path, **columns: Any) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "test-0.parquet")
    return str(folder)


@pytest.fixture
def voice(clips: Path) -> dict[str, Any]:
    return {"bytes": (clips / "tone.wav").read_bytes(), "path": "tone.wav"}


def configured(folder: Path, name: str, **columns: Any) -> str:
    parquet(folder / name, **columns)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test*\n---\n"
    )
    return f"{folder}:{name}"


def test_translations_into_several_languages_are_resolved_by_the_configuration(voice: Any, tmp_path: Path) -> None:
    both = {"en": "five nine two", "de": "fünf neun zwei"}
    (utterance,) = open_data(configured(tmp_path / "a", "en_de", audio=[voice], translation=[both]))
    assert (utterance.text, utterance.task, utterance.language) == ("fünf neun zwei", "translate", "de")
    variable = {"language": ["en", "de"], "translation": ["five nine two", "fünf neun zwei"]}
    (utterance,) = open_data(configured(tmp_path / "b", "en_de", audio=[voice], translation=[variable]))
    assert utterance.text == "fünf neun zwei"
    with pytest.raises(InputError, match=r"has en, de in its column 'translation': say which is the reference"):
        open_data(parquet(tmp_path / "c", audio=[voice], translation=[both]))


@pytest.mark.parametrize("value", [["five", "nine"], {"raw": "five"}, b"five", True])
def test_references_that_are_no_texts_are_refused(voice: Any, tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match="in its column 'text', which must hold texts"):
        open_data(parquet(tmp_path / "a", audio=[voice], text=[value]))


def test_numbers_are_answers_and_other_columns_are_left_alone(voice: Any, tmp_path: Path) -> None:
    spec = parquet(tmp_path / "a", audio=[voice], text=[5], id=[{"part": 1}], language=[["en"]])
    (utterance,) = open_data(spec)
    assert (utterance.text, utterance.id, utterance.language) == ("5", "0", None)


def test_a_split_that_is_not_the_saved_one_is_refused(voice: Any, tmp_path: Path) -> None:
    saved = datasets.Dataset.from_dict({"audio": [voice], "text": ["one"]})
    saved.save_to_disk(tmp_path / "saved")
    assert len(open_data(tmp_path / "saved")) == 1
    with pytest.raises(InputError, match=r"saved has no splits, and 'nope' is asked for"):
        open_data(f"{tmp_path / 'saved'}::nope")
    of_test = datasets.Dataset.from_dict({"audio": [voice], "text": ["one"]}, split="test")
    of_test.save_to_disk(tmp_path / "test")
    assert len(open_data(f"{tmp_path / 'test'}::test")) == 1
    with pytest.raises(InputError, match=r"test has the split test alone, and 'nope' is asked for"):
        open_data(f"{tmp_path / 'test'}::nope")


def test_a_table_of_paths_is_read_and_a_missing_one_is_named_by_its_path(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "tone.wav").write_bytes((clips / "tone.wav").read_bytes())
    (tmp_path / "test.csv").write_text("audio,text\ntone.wav,one\nabsent.wav,two\n")
    first, second = open_data(str(tmp_path))
    assert first.load(16000).seconds == pytest.approx(1.2)
    with pytest.raises(InputError, match=r"no such recording: .*absent\.wav"):
        second.load(16000)
    missing = open_data(parquet(tmp_path / "p", audio=[{"bytes": None, "path": "gone.flac"}], text=["x"]))
    with pytest.raises(InputError, match=r"no such recording: gone\.flac"):
        missing[0].load(16000)


def test_data_sets_that_cannot_be_had_are_refused_in_words(clips: Path, tmp_path: Path) -> None:
    script = tmp_path / "fleurs"
    script.mkdir()
    (script / "fleurs.py").write_text("import datasets\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "tone.wav").write_bytes((clips / "tone.wav").read_bytes())
    array = {"array": [0.1] * 1600, "sampling_rate": 16000}
    for spec, said in {
        str(script): "loading script has to be had as Parquet files",
        str(folder): "write a manifest",
        parquet(tmp_path / "floats", audio=[array], text=["x"]): "which must hold files",
        parquet(tmp_path / "numbers", audio=[5], text=["x"]): "which must hold files",
    }.items():
        with pytest.raises(InputError, match=said):
            open_data(spec)


def test_a_data_set_s_recordings_are_known_by_their_contents(voice: Any, tmp_path: Path) -> None:
    from affinity_pool.study.identity import of_audio

    one, other = dict(voice), {**voice, "bytes": voice["bytes"][:-2] + b"\1\1"}
    found = [
        of_audio(open_data(parquet(tmp_path / name, audio=[recording], text=["x"])))
        for name, recording in (("a", one), ("b", other))
    ]
    assert found[0] != found[1]


# Text where it is shown.

ODD = [
    r"cost $\frac$", "$5 or $6", "Interview [dQw4w9WgXcQ]", "a[/b]", "<script>alert(1)</script>", "]]>", "&amp;",
    "**b** `c`", "tab\tand\nline", "\u202eright", "日本語", "\0", "caf\\udce9", "x" * 3000, "{}", "%s", "", "\u2028",
]  # fmt: skip


def picture(title: str, words: list[Word]) -> Picture:
    rows = [Row("audio tokens", title, [Span(i, i + 1) for i in range(75)])]
    return Picture(title, np.zeros((80, 300)), 3.0, 0.04, words, rows)


@pytest.mark.parametrize("text", ODD)
def test_any_text_is_drawn_as_it_is(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that no font here has
        figure = draw(picture(text[:200], [Word(text[:200], 0.5, 1.0)]))
        figure.savefig(io.BytesIO())
    shown = [label for axes in figure.axes for label in axes.texts] + figure.texts
    assert text[:200] in [label.get_text() for label in shown]
    assert not any(label.get_parse_math() for label in shown)


@pytest.mark.parametrize(
    "words",
    [
        [Word("uh", 0.5, 1.0), Word("yes", 0.5, 1.0)],
        [Word("uh", 0.5, 1.0), Word("yes", 0.4, 1.1)],
        [Word("long", 0.0, 3.0), Word("in", 1.0, 2.0), Word("it", 1.4, 1.6)],
        [Word("late", 5.0, 6.0)],
        [Word("over", 2.5, 1e6)],
        [Word("brief", 1.0, 1.0 + 1e-12), Word("next", 1.0 + 1e-12, 1.1)],
        [],
    ],
)
def test_words_may_lie_anywhere(words: list[Word]) -> None:
    draw(picture("a", words)).savefig(io.BytesIO())


@pytest.mark.parametrize("text", ODD)
def test_any_text_is_written_to_pages(text: str, tmp_path: Path) -> None:
    shown = page.Page(
        title=text, lead=text, cards=[page.Card(text, text, text)], findings=[text], facts={text: text},
        sections=[page.Section(text, [text, page.Table([text], [[text]]), page.Answers(text, text, [(text, text)])])],
    )  # fmt: skip
    page.write(shown, tmp_path)
    html = (tmp_path / "index.html").read_text("utf-8")
    assert "<script" not in html
    assert "\ud800" not in html


def test_half_a_character_can_be_written_to_a_page(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        page.write(page.Page(title="\ud83d", lead="\udce9"), tmp_path)
    assert r"\ud83d" in (tmp_path / "index.html").read_text("utf-8")
    assert chart(picture("a", [])).alt
