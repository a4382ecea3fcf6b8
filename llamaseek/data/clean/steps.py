"""The steps of a cleaning run: passes over the documents, and decisions between them.

A pass reads every shard, applies the last decision and the stages that look at one document, and
writes the shard again with notes for the next decision. Files of a step are named by shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from llamaseek.data.bad_rows import BadRows
from llamaseek.data.clean.dedup.stage import Collector, CorpusStage, Shards
from llamaseek.data.clean.files import (
    DOCUMENTS,
    REMOVED,
    ParquetFile,
    document_row,
    read_cleaned,
    removed_row,
)
from llamaseek.data.clean.plan import Shard, load_plan
from llamaseek.data.clean.recipe import Named
from llamaseek.data.clean.stage import CleaningStage, Reason
from llamaseek.data.clean.tally import CleaningStats
from llamaseek.data.documents import Document
from llamaseek.errors import UserError


@dataclass(frozen=True)
class CleaningPass:
    """One pass: `before` decided on the documents of the last pass, `after` will on these."""

    number: int
    before: Named | None
    stages: tuple[Named, ...]
    after: Named | None


def passes(stages: Sequence[Named]) -> list[CleaningPass]:
    """The passes that these stages need: one, and one more for each that sees the whole corpus."""
    found: list[CleaningPass] = []
    before: Named | None = None
    single: list[Named] = []
    for stage in stages:
        if isinstance(stage.settings, CorpusStage):
            found.append(CleaningPass(len(found), before, tuple(single), stage))
            before, single = stage, []
        else:
            single.append(stage)
    return [*found, CleaningPass(len(found), before, tuple(single), None)]


@dataclass(frozen=True)
class WorkFolder:
    """The folder of an unfinished run."""

    folder: Path

    def of_pass(self, number: int, kind: str) -> Path:
        """`documents`, `removed`, `tally` or `notes` of one pass."""
        return self.folder / f"pass-{number}" / kind

    def plan(self) -> list[Shard]:
        """The shards of the run."""
        return load_plan((self.folder / "plan.json").read_text())

    def shards(self, number: int, count: int) -> Shards:
        """The documents of a pass that is done."""
        files = [self.of_pass(number, "tally") / f"{n:06d}.json" for n in range(count)]
        counts = tuple(json.loads(file.read_text())["written"] for file in files)
        return self.unfinished(number, counts)

    def unfinished(self, number: int, counts: tuple[int, ...] = ()) -> Shards:
        """The folders of a pass."""
        return Shards(self.of_pass(number, "documents"), self.of_pass(number, "notes"), counts)


def run_pass(work: WorkFolder, step: CleaningPass, shard: int) -> None:
    """Read, judge and write one shard of one pass."""
    tally, written = CleaningStats(), 0
    name = f"{shard:06d}"
    collector = _collector(work, step, shard)
    with ExitStack() as open_files:
        kept = open_files.enter_context(
            ParquetFile(work.of_pass(step.number, "documents") / f"{name}.parquet", DOCUMENTS)
        )
        removed = open_files.enter_context(
            ParquetFile(work.of_pass(step.number, "removed") / f"{name}.parquet", REMOVED)
        )
        for document, reason, stage in judged(work, step, shard, tally):
            if reason is not None:
                removed.add(removed_row(stage, reason, document))
                tally.leave(stage, reason, document)
                continue
            kept.add(document_row(document))
            if collector is not None:
                collector.add(written, document)
            else:
                tally.keep(document)
            written += 1
    if collector is not None:
        collector.finish()
    record = {"written": written, "tally": asdict(tally)}
    (work.of_pass(step.number, "tally") / f"{name}.json").write_text(json.dumps(record))


Judged = tuple[Document, Reason | None, str]


def judged(
    work: WorkFolder, step: CleaningPass, shard: int, tally: CleaningStats
) -> Iterator[Judged]:
    """Documents of a shard after the pass's stages; a removed one with its reason and stage."""
    for document, reason in _incoming(work, step, shard, tally):
        if reason is not None:
            yield document, reason, step.before.name if step.before else ""
            continue
        for stage in step.stages:
            tally.count("entered", stage.name)
            assert isinstance(stage.settings, CleaningStage)
            found = stage.settings(document)
            if isinstance(found, Reason):
                yield document, found, stage.name
                break
            if found is not document and found.text != document.text:
                tally.count("changed", stage.name)
            document = found
        else:
            yield document, None, ""


def _incoming(
    work: WorkFolder, step: CleaningPass, shard: int, tally: CleaningStats
) -> Iterator[tuple[Document, Reason | None]]:
    """The sources' documents, or the last pass's with the decision on them."""
    if step.before is None:
        for unit in work.plan()[shard]:
            bad = BadRows(skip=True)
            for document in unit.documents(bad):
                tally.count("read", unit.source)
                tally.length("before", document)
                yield document, None
            if bad.skipped and not bad.used:  # a column of another name, not a gap here and there
                raise UserError(next(iter(bad.first.values())))
            tally.leave_unread(unit.source, bad)
        return
    settings = step.before.settings
    assert isinstance(settings, CorpusStage)
    shards = work.shards(step.number - 1, len(work.plan()))
    judge = settings.judge(shards, shard)
    for row, document in enumerate(read_cleaned(shards.documents / f"{shard:06d}.parquet")):
        tally.count("entered", step.before.name)
        found = judge(row, document)
        if isinstance(found, Reason):
            yield document, found
        else:
            if found is not document:
                tally.count("changed", step.before.name)
            yield found, None


def _collector(work: WorkFolder, step: CleaningPass, shard: int) -> Collector | None:
    if step.after is None:
        return None
    assert isinstance(step.after.settings, CorpusStage)
    return step.after.settings.collector(work.unfinished(step.number), shard)
