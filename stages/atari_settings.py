"""Who plays: settings of the policies of make_atari. Imports neither the emulator nor numpy."""

from typing import Annotated, Literal

from pydantic import Field

from worldloom.stages.settings import Settings

FRAMES_A_SECOND = 60  # that the console draws
# As the Arcade Learning Environment names them, in small letters.
ACTIONS = (
    *("noop", "fire", "up", "right", "left", "down", "upright", "upleft", "downright", "downleft"),
    *("upfire", "rightfire", "leftfire", "downfire", "uprightfire", "upleftfire", "downrightfire", "downleftfire"),
)
SCREEN = (210, 160)  # height, width; a few games have other heights

Kept = Annotated[float, Field(ge=0, lt=1, description="share of the steps that repeat the action before")]


class Sticky(Settings):
    """Any action, each as likely, often held for some steps."""

    type: Literal["sticky"] = "sticky"
    keep: Kept = 0.75


class Follow(Settings):
    """Follows the ball, of games where it is known, now and then with another action."""

    type: Literal["follow"] = "follow"
    keep: Kept = 0.5
    noise: Annotated[float, Field(ge=0, le=1, description="share of the other steps that take any action")] = 0.3


Policy = Annotated[Sticky | Follow, Field(discriminator="type")]
