"""``affinity-pool cost``"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....cli.application import console, errors_in_words
from ....cli.options import (
    Data,
    Device,
    Dtype,
    Model,
    Out,
    Prompt,
    Sites,
    SitesAttention,
    among,
    parse_attention,
    parse_list,
    parse_seconds,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ....models.settings import Attention, Pooling
    from ...subject.subject import Subject
    from .prompts import Case

GPU_LENGTHS, CPU_LENGTHS = "5,10,20,30,45,60", "1,2,5,10,20,30"


def cost(
    model: Model = None,
    data: Data = None,
    prompt: Prompt = None,
    sites: Sites = None,
    attention: SitesAttention = None,
    buckets: Annotated[
        str | None,
        typer.Option(
            help="Where buckets of lengths end, in seconds; 20,40,60, or fifths of what the model hears at once if "
            "that is less than 20 s, if left out."
        ),
    ] = None,
    per_bucket: Annotated[int, typer.Option(min=1, help="Recordings measured in each bucket, the first ones.")] = 8,
    lengths: Annotated[
        str | None,
        typer.Option(help="Seconds of audio, in place of buckets: the recordings, repeated, make prompts that long."),
    ] = None,
    random_weights: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG",
            help="No weights and no data: a model made of a config (folder, JSON file, Hub id, qwen2-audio-7b, mid or "
            "tiny), and prompts of --lengths that keep what the paper's do.",
            autocompletion=among("qwen2-audio-7b", "mid", "tiny"),
        ),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(help="With --random-weights, or a model whose decoder attends to an encoder: prompts in a batch."),
    ] = "1",
    rounds: Annotated[int, typer.Option(min=6, help="Prefills of each condition, in turns.")] = 21,
    new_tokens: Annotated[int, typer.Option(min=1, help="Decoding steps that are timed.")] = 32,
    idle: Annotated[bool, typer.Option("--idle", help="Also pool by rules that merge nothing.")] = False,
    out: Out = Path("out/cost"),
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """What pooling costs and saves by length of the audio: first token, memory, KV cache, decoding; where time goes.

    Prefills with and without pooling run in turns; each ratio has a 95 % interval, and a verdict says when pooling is
    slower. With --random-weights the cost of a model is measured without having it.
    """
    with errors_in_words():
        from ...data import digests
        from ...report.page import write
        from ...runs import folders
        from . import page as cost_page
        from .measure import Options
        from .run import method, run
        from .table import render

        folders.take(out, "cost")
        options = Options(rounds, new_tokens, idle)
        kind = None if attention is None else parse_attention(attention)
        seconds = None if lengths is None else parse_seconds(lengths, "lengths")
        sizes = parse_list(batch, int, "batch")
        if min(sizes) < 1:
            raise typer.BadParameter(f"batch must be 1 or more, got {batch!r}")
        if random_weights is not None:
            unused = {"--model": model, "--data": data, "--prompt": prompt, "--sites": sites, "--buckets": buckets}
            if refused := [name for name, value in unused.items() if value is not None]:
                raise typer.BadParameter(f"{refused[0]} does not go with --random-weights, which needs only --lengths")
            loaded, pooling, cases = _from_config(random_weights, seconds, sizes, kind, device, dtype)
            name, given = random_weights, {"model": digests.digest([loaded.config.to_dict()])}
        else:
            if lengths is not None and buckets is not None:
                raise typer.BadParameter("--lengths are measured in place of --buckets: give one of them")
            edges = None if buckets is None else parse_seconds(buckets, "buckets")
            if edges is not None and any(later <= edge for edge, later in pairwise(edges)):
                raise typer.BadParameter(f"buckets must rise, as 5,10,20, got {buckets!r}")
            loaded, name, pooling, cases, given = _from_recordings(
                model, data, prompt, sites, kind, edges, per_bucket, seconds, sizes, device, dtype
            )
        if pooling is not None:
            kind = pooling.attention

        def echo(line: str) -> None:
            console.print(line, soft_wrap=True)

        summary = run(loaded, cases, options, method(loaded, name, options, pooling, kind or "plain"), given, out, echo)
        console.print("\n" + render(summary), soft_wrap=True)
        written = write(cost_page.page(summary), out)
    names = ", ".join(path.name for path in written)
    console.print(f"Written to {out}: results.jsonl, summary.json, {names}", soft_wrap=True)


def _from_config(
    config: str,
    lengths: list[float] | None,
    batches: list[int],
    attention: Attention | None,
    device: str | None,
    dtype: str,
) -> tuple[Subject, Pooling | None, Iterable[Case]]:
    import torch

    from ...subject.devices import usable_device
    from ...subject.subject import Subject
    from .architectures import config_of, random_model
    from .prompts import MEMORY_RETENTION, forced_cases, memory_cases, noise

    place = torch.device(usable_device(device))
    on_cpu = place.type == "cpu"
    kind = ("float32" if on_cpu else "bfloat16") if dtype == "auto" else dtype
    if kind not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"must be auto, float32, bfloat16 or float16, got {kind!r}", param_hint="--dtype")
    found = config_of(config)
    if found.is_encoder_decoder:
        from ....models import MEMORY, Site
        from ....models.settings import Pooling
        from ...subject.encoder_decoder import EncoderDecoder

        _check_window(lengths)
        hearing = EncoderDecoder(random_model(found, place, getattr(torch, kind)))
        pooling = Pooling((Site(MEMORY, keep=MEMORY_RETENTION),), "keep", attention or "proportional")
        window = hearing.token_seconds * found.max_source_positions
        return hearing, pooling, memory_cases(lambda size: noise(hearing, size), window, pooling, batches)
    subject = Subject(random_model(found, place, getattr(torch, kind)))
    seconds = lengths or parse_list(CPU_LENGTHS if on_cpu else GPU_LENGTHS, float, "lengths")
    return subject, None, forced_cases(subject, seconds, batches, attention or "plain")


def _from_recordings(
    model: str | None,
    data: str | None,
    prompt: str | None,
    sites: str | None,
    attention: Attention | None,
    edges: list[float] | None,
    per_bucket: int,
    lengths: list[float] | None,
    batches: list[int],
    device: str | None,
    dtype: str,
) -> tuple[Subject, str, Pooling, Iterable[Case], dict[str, str]]:
    from ...data import open_data
    from ...data.digests import of_audio, of_texts
    from ...sites import check_sites
    from ...subject.lslm import load
    from .prompts import Request, bucket_cases, length_cases, memory_cases, repeated

    utterances = open_data(data)
    lslm = load(model, device, dtype, lambda depth: check_sites(sites, depth))
    pooling = lslm.pooling(sites or lslm.sites, attention)
    recordings = [Request(one.load(lslm.rate), prompt or one.task) for one in utterances]
    if lslm.pooled_depth is None:
        _check_window(lengths or edges)
        recordings = [one for one in recordings if one.audio.seconds <= lslm.longest]
        if not recordings:
            raise typer.BadParameter(f"no recording is short enough: {lslm.name} hears {lslm.longest:g} s at once")
    elif batches != [1]:
        raise typer.BadParameter(
            "--batch needs --random-weights, or a model whose decoder attends to an encoder: else recordings are "
            "measured one by one"
        )
    cases = (
        memory_cases(lambda size: repeated(lslm, recordings, size), lslm.longest, pooling, batches)
        if lslm.pooled_depth is None
        else bucket_cases(lslm, recordings, pooling, edges, per_bucket)
        if lengths is None
        else length_cases(lslm, recordings, pooling, lengths)
    )
    given = {"texts": of_texts(utterances), "audio": of_audio(utterances), "model": lslm.digest}
    return lslm, lslm.name, pooling, cases, given


def _check_window(given: list[float] | None) -> None:
    if given is not None:
        raise typer.BadParameter(
            "--lengths and --buckets are for models that have more tokens for longer audio: Whisper has as many for "
            "any, and is measured by --batch"
        )
