"""Makes the study's pages from the summaries in docs/study and the costs in benchmarks/results, as docs/build.py does.

    python docs/make_pages.py FOLDER

A page is made of its ``summary.json`` alone, but for the probe's picture, for which the bundled model hears the longest
bundled recording. The one chart that docs/experiments.md shows is saved beside its page; in FOLDER docs/study that is
the committed one.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from affinity_pool.study.report.figures import Chart
from affinity_pool.study.report.page import Page, html
from affinity_pool.study.runs import folders

DOCS = Path(__file__).parent
STUDY = DOCS / "study"
SHOWN = "oracle/wer-26"
COSTS = DOCS.parent / "benchmarks" / "results" / "cpu-xeon"
EXPERIMENTS = {
    "oracle": "oracle",
    "probe": "probe",
    "dynamics": "dynamics",
    "eval-espeak": "evaluate",
    "eval-allison": "evaluate",
    "shares-espeak": "evaluate",
    "shares-allison": "evaluate",
    "attention-espeak": "evaluate",
    "attention-allison": "evaluate",
    "merges-espeak": "evaluate",
    "merges-allison": "evaluate",
    "whisper-tiny": "evaluate",
    "whisper-tiny-others": "evaluate",
    "whisper-tiny-readings": "evaluate",
    "whisper-tiny-layers": "dynamics",
    "whisper-base": "evaluate",
    "whisper-base-readings": "evaluate",
    "whisper-base-layers": "dynamics",
    "input": "evaluate",
    "input-no-tempo": "evaluate",
    "calibrate": "calibrate",
    "cost-bundled": "cost",
    "cost-mid": "cost",
    "serving-bundled": "serving",
    "serving-mid": "serving",
}


def page_of(name: str) -> Page:
    """The page of a folder of docs/study."""
    experiment = EXPERIMENTS[name]
    summary_file = COSTS / f"{name}.json" if experiment == "cost" else STUDY / name / "summary.json"
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    page = import_module(f"affinity_pool.study.experiments.{experiment}.page").page
    if experiment != "probe":
        return page(summary)
    from affinity_pool.study.data import open_data
    from affinity_pool.study.experiments.probe.run import picture, recording_to_draw
    from affinity_pool.study.subject.lslm import load

    lslm, config = load(device="cpu"), summary["config"]
    shown, audio = recording_to_draw(open_data(), None, lslm)
    thresholds = sorted(config["thresholds"])
    rule = thresholds[len(thresholds) // 2], config["windows"][-1]
    return page(summary, picture(lslm, shown, audio, None, config["layers"], *rule))


def main() -> None:
    out = Path(sys.argv[1])
    for name in EXPERIMENTS:
        page = page_of(name)
        (out / name).mkdir(parents=True, exist_ok=True)
        folders.write(out / name / "index.html", html(page))
        for section in page.sections:
            for block in section.blocks:
                if isinstance(block, Chart) and f"{name}/{block.name}" == SHOWN:
                    block.save(out / name)
        print(out / name / "index.html")


if __name__ == "__main__":
    main()
