"""The kinds of stages there are. A new kind is a file in stages/ and two lines here."""

from worldloom.stages.curate import STAGE as CURATE
from worldloom.stages.embed_dataset import STAGE as EMBED_DATASET
from worldloom.stages.encode_dataset import STAGE as ENCODE_DATASET
from worldloom.stages.evaluate_encoder import STAGE as EVALUATE_ENCODER
from worldloom.stages.evaluate_world_model import STAGE as EVALUATE_WORLD_MODEL
from worldloom.stages.import_encoder import STAGE as IMPORT_ENCODER
from worldloom.stages.import_folder import STAGE as IMPORT_FOLDER
from worldloom.stages.import_tokenizer import STAGE as IMPORT_TOKENIZER
from worldloom.stages.import_webdataset import STAGE as IMPORT_WEBDATASET
from worldloom.stages.kind import StageKind
from worldloom.stages.make_atari import STAGE as MAKE_ATARI
from worldloom.stages.make_shapes import STAGE as MAKE_SHAPES
from worldloom.stages.pretrain_encoder import STAGE as PRETRAIN_ENCODER
from worldloom.stages.train_action_tokenizer import STAGE as TRAIN_ACTION_TOKENIZER
from worldloom.stages.train_text_tokenizer import STAGE as TRAIN_TEXT_TOKENIZER
from worldloom.stages.train_tokenizer import STAGE as TRAIN_TOKENIZER
from worldloom.stages.train_world_model import STAGE as TRAIN_WORLD_MODEL

STAGES: dict[str, StageKind] = {
    kind.name: kind
    for kind in (
        MAKE_SHAPES,
        MAKE_ATARI,
        IMPORT_FOLDER,
        IMPORT_WEBDATASET,
        IMPORT_TOKENIZER,
        IMPORT_ENCODER,
        TRAIN_TEXT_TOKENIZER,
        TRAIN_TOKENIZER,
        TRAIN_ACTION_TOKENIZER,
        ENCODE_DATASET,
        TRAIN_WORLD_MODEL,
        PRETRAIN_ENCODER,
        EMBED_DATASET,
        CURATE,
        EVALUATE_ENCODER,
        EVALUATE_WORLD_MODEL,
    )
}
