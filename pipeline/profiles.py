"""Where and how wide a pipeline runs; nothing here can change what it makes."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from worldloom.stages.settings import Settings

if TYPE_CHECKING:
    from worldloom.pipeline.executor import Executor


class Train(Settings):
    """The gang of workers that trains one model together."""

    workers: PositiveInt = Field(default=1, description="processes that train one model together")
    cpus_per_worker: PositiveInt | None = Field(default=None, description="CPUs of each; null: all CPUs shared out evenly")
    gpus_per_worker: NonNegativeFloat = Field(default=0, description="GPUs of each; 0 trains on the CPU")
    zero: NonNegativeInt = Field(default=1, le=3, description="ZeRO stage of DeepSpeed: what is shared out over the workers")
    offload: Literal["none", "cpu"] = Field(
        default="none", description="cpu: masters and optimizer, under zero 3 the parameters too, lie in the memory of the CPU"
    )

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        if self.offload != "none" and self.zero == 0:
            raise ValueError("offload: cpu moves what ZeRO shares out, and zero is 0; set zero to 1, 2 or 3, or offload to none")
        return self


class Profile(Settings):
    """One way to run: on this machine or on a cluster."""

    executor: Literal["ray", "inline"] = Field(default="ray", description="ray: workers side by side; inline: everything in one process")
    address: Literal["auto"] | None = Field(
        default=None, description="auto: the Ray cluster of this machine; null: start Ray on this machine"
    )
    workers: PositiveInt | None = Field(default=None, description="workers that make and encode data; null: one for every CPU")
    train: Train = Train()


def executor_of(profile: Profile) -> "Executor":
    """What runs stages as the profile says; nothing is started yet."""
    train = profile.train
    if profile.executor == "inline":
        from worldloom.pipeline.inline_executor import InlineExecutor

        return InlineExecutor(train_workers=train.workers, zero=train.zero, offload=train.offload)
    from worldloom.pipeline.ray_executor import RayExecutor

    return RayExecutor(
        address=profile.address,
        workers=profile.workers,
        train_workers=train.workers,
        cpus_per_worker=train.cpus_per_worker,
        gpus_per_worker=train.gpus_per_worker,
        zero=train.zero,
        offload=train.offload,
    )
