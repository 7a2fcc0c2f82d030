"""What Python's garbage collector is spared."""

import gc


def leave_what_is_there() -> None:
    """Takes all objects of now out of the collector's sight: they live as long as the process, and looking through them (torch, Ray) holds
    up every request for 0.1 s again and again."""
    gc.collect()
    gc.freeze()
