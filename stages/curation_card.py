"""The report of a curation: how much went, why, and pairs of pictures to judge the judgement by."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.card import Bars, Block, Card, Cell, Gallery, Item, Table, Text, write_card, write_figures
from worldloom.stages.curate import Curate
from worldloom.stages.duplicates import BINS, Compared
from worldloom.stages.removal import REASONS, Removal
from worldloom.stages.seen import Seen
from worldloom.stages.show import show
from worldloom.stages.value_batches import spaced

TITLES = {
    "exact_duplicate": "Equal pixels: what stays, and what went",
    "near_duplicate": "Near duplicates: what stays, and what went, from the least alike on",
    "far_from_reference": "Far from the reference: its nearest picture, and what went",
    "caption_does_not_fit": "Captions that do not fit, from the worst on",
}


def report_curation(
    settings: Curate, seen: Seen, reference: Seen | None, removal: Removal, compared: Compared, recall: float | None, out: Path
) -> None:
    """Writes figures.json, pictures and card.json."""
    name, counts = seen.features.stream, removal.counts
    figures: dict[str, float] = {f"{name}.pictures": len(removal.reason), f"{name}.kept": int((removal.reason == 0).sum())}
    figures |= {f"{name}.{reason}": count for reason, count in counts.items()}
    if recall is not None:
        figures |= {f"{name}.compared": compared.pairs, f"{name}.search_recall": round(recall, 4)}
    blocks: list[Block] = [_table(seen, removal), Text(text=_about(settings, removal, compared.pairs, recall))]
    by_pixels = settings.near is not None and settings.near.verify == "pixels"
    if by_pixels:
        labels = tuple(f"{low:.3f}" for low in np.linspace(0.5, 1, BINS, endpoint=False))
        blocks.append(
            Bars(
                values=tuple(compared.heights.tolist()),
                labels=labels,
                title="Pairs compared, by the concordance from which on they are one",
            )
        )
    for place, reason in enumerate(REASONS[1:], start=1):
        if items := tuple(_pairs(settings, np.flatnonzero(removal.reason == place), reason, seen, reference, removal, compared.links, out)):
            blocks.append(Gallery(items=items, title=TITLES[reason]))
    if by_pixels and (items := tuple(_spared(seen, compared.spared, out))):
        blocks.append(Gallery(items=items, title="Most alike of those that both stay"))
    write_figures(out, figures)
    write_card(out, Card(title=f"Curation of {name}", blocks=tuple(blocks), headline=(f"{name}.kept",)))


def _table(seen: Seen, removal: Removal) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for split in seen.data.splits:
        parts = [removal.reason[part.first : part.first + part.rows] for part in seen.features.parts if part.split == split]
        reasons = np.concatenate([np.zeros(0, np.uint8), *parts])
        went = [int((reasons == place).sum()) for place in range(1, len(REASONS))]
        rows.append((split, seen.data.samples(split), *went, seen.data.samples(split) - sum(went)))
    columns = ("split", "samples", *(reason.replace("_", " ") for reason in REASONS[1:]), "stay")
    return Table(columns=columns, rows=tuple(rows), title="Samples")


def _about(settings: Curate, removal: Removal, pairs: int, recall: float | None) -> str:
    said = f"{int((removal.reason > 0).sum()):,} of {len(removal.reason):,} pictures went; the ledger is in removed/."
    if settings.near is not None and recall is not None:
        said += f" {pairs:,} pairs of neighbours were compared; the search finds {recall:.2%} of the true neighbours."
    return said


def _pairs(
    settings: Curate,
    numbers: NDArray[np.int64],
    reason: str,
    seen: Seen,
    reference: Seen | None,
    removal: Removal,
    links: NDArray[np.void],
    out: Path,
) -> Iterator[Item]:
    """What stays beside what went, evenly spaced; near duplicates in the order of their likeness."""
    if reason == "near_duplicate":
        numbers = numbers[np.argsort(_likeness(numbers, removal, links), kind="stable")]
    if reason == "caption_does_not_fit":
        numbers = numbers[np.argsort(removal.score[numbers], kind="stable")]
    for shown, number in enumerate(numbers[spaced(len(numbers), settings.shown)].tolist() if len(numbers) else ()):
        detail, file = "", f"{reason.replace('_', '-')}-{shown:02d}"
        if reason == "caption_does_not_fit":
            yield _unfit(out, file, seen, number, float(removal.score[number]))
            continue
        if reason == "far_from_reference":
            assert reference is not None
            stays, other = int(removal.nearest[number]), reference
            detail = f"cosine {removal.cosine[number]:.3f}"
        else:
            stays, other = int(removal.kept[number]), seen
            if removal.link[number] >= 0:
                detail = _alike(links[removal.link[number]])
        yield _item(out, file, (other, stays), (seen, number), detail)


def _unfit(out: Path, name: str, seen: Seen, number: int, score: float) -> Item:
    """A picture with the caption that does not fit."""
    shown = show(out, name, seen.picture(number), seen.data.streams[seen.features.stream])
    assert shown is not None
    return Item(file=shown.file, caption=seen.caption(number), detail=f"{seen.key(number)}, cosine {score:.3f}")


def _spared(seen: Seen, links: NDArray[np.void], out: Path) -> Iterator[Item]:
    """Pairs below the bar."""
    for shown, row in enumerate(links):
        yield _item(out, f"spared-{shown:02d}", (seen, int(row["a"])), (seen, int(row["b"])), _alike(row))


def _likeness(numbers: NDArray[np.int64], removal: Removal, links: NDArray[np.void]) -> NDArray[np.float32]:
    """Of near duplicates, with the picture that they are linked to; 1 for equal pixels of one that is linked."""
    link = removal.link[numbers]
    likeness = np.ones(len(numbers), np.float32)
    likeness[link >= 0] = links["concordance"][link[link >= 0]]
    return likeness


def _alike(link: np.void) -> str:
    said = f"concordance {link['concordance']:.3f}, cosine {link['cosine']:.3f}"
    left, top, right, bottom = link["box"].tolist()
    share = (right - left) * (bottom - top)
    said += f", one shows {share:.0%} of the other" if share < 0.995 else ""
    return said + (", mirrored" if link["flipped"] else "")


def _item(out: Path, name: str, stays: tuple[Seen, int], went: tuple[Seen, int], detail: str) -> Item:
    files = []
    for side, (seen, number) in zip(("left", "right"), (stays, went), strict=True):
        shown = show(out, f"{name}-{side}", seen.picture(number), seen.data.streams[seen.features.stream])
        assert shown is not None
        files.append(shown.file)
    return Item(before=files[0], file=files[1], caption=f"{stays[0].key(stays[1])} | {went[0].key(went[1])}", detail=detail)
