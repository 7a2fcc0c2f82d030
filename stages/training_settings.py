"""What every stage that trains has in common: length, learning rate, precision, checkpoints."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from worldloom.stages.settings import NOT_IN_OUTPUT, StageSettings

# Keys of DeepSpeed's configuration that the training loop fills itself; the rest of it may be given in `deepspeed`.
OWNED = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "optimizer",
        "scheduler",
        "gradient_clipping",
        "bf16",
        "fp16",
        "torch_autocast",
        "checkpoint",
        "elasticity",
    }
)


class TrainingSettings(StageSettings):
    """Settings of one training; a stage inherits them, so they stand beside its own in the pipeline file."""

    steps: PositiveInt = Field(1_000, description="optimizer steps, each on one global batch")
    seed: NonNegativeInt = Field(0, description="of the first weights, the order of the samples and every draw")
    learning_rate: PositiveFloat = Field(1e-3, description="at its highest, after the warm-up")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="AdamW's two rates of forgetting"
    )
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled, on matrices only")
    warmup: NonNegativeInt = Field(20, description="steps over which the learning rate rises from zero")
    schedule: Literal["cosine", "wsd", "constant"] = Field("cosine", description="what the learning rate does after the warm-up")
    final_share: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="last learning rate as a share of the highest")
    decay_share: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="share of the steps that `wsd` spends falling")
    clip: NonNegativeFloat = Field(1.0, description="highest gradient norm; 0 leaves gradients as they are")
    spike_guard: bool = Field(
        False, description="where a loss leaps and stays up: goes back to a checkpoint from before, and passes over the batches that did it"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the CPU or GPU has it, else fp32")
    save_every: Annotated[PositiveInt | None, NOT_IN_OUTPUT] = Field(None, description="steps between checkpoints; null: by time only")
    save_seconds: Annotated[PositiveFloat, NOT_IN_OUTPUT] = Field(30.0, description="seconds of training between checkpoints")
    hang_seconds: Annotated[PositiveFloat | None, NOT_IN_OUTPUT] = Field(
        900.0,
        description="where several workers train: a step, or a save, that takes longer ends them, to be started again; null: never",
    )
    keep: Annotated[PositiveInt, NOT_IN_OUTPUT] = Field(3, description="newest checkpoints that stay")
    log_every: Annotated[PositiveInt, NOT_IN_OUTPUT] = Field(10, description="steps between lines of metrics")
    deepspeed: dict[str, Any] = Field({}, description="handed to DeepSpeed as it is, without the keys that the loop fills itself")

    @field_validator("deepspeed")
    @classmethod
    def _leaves_our_keys_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(OWNED & value.keys())
        if taken:
            raise ValueError(
                f"deepspeed: {', '.join(taken)} is filled from the stage's own settings (steps, learning_rate, clip, precision); "
                "leave it out here and set those"
            )
        if "stage" in value.get("zero_optimization", {}):
            raise ValueError("deepspeed: zero_optimization.stage comes from the profile; set train: {zero: ...} there")
        return value
