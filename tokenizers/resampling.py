"""How pictures are brought to another size: Pillow's filters by name."""

from typing import Literal

Resampling = Literal["lanczos", "bicubic", "bilinear", "nearest"]
RESAMPLING: dict[Resampling, int] = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
