"""The kinds of stages there are. A new kind is a file in stages/ and two lines here."""

from worldloom.stages import encode_dataset, make_shapes
from worldloom.stages.kind import StageKind

STAGES: dict[str, StageKind] = {
    kind.name: kind
    for kind in (
        make_shapes.STAGE,
        encode_dataset.STAGE,
    )
}
