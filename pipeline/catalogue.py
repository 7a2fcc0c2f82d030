"""The kinds of stages there are. A new kind is a file in stages/ and two lines here."""

from worldloom.stages import (
    encode_dataset,
    evaluate_world_model,
    import_folder,
    make_shapes,
    train_text_tokenizer,
    train_tokenizer,
)
from worldloom.stages.kind import StageKind

STAGES: dict[str, StageKind] = {
    kind.name: kind
    for kind in (
        make_shapes.STAGE,
        import_folder.STAGE,
        train_text_tokenizer.STAGE,
        train_tokenizer.STAGE,
        encode_dataset.STAGE,
        evaluate_world_model.STAGE,
    )
}
