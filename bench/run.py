"""`make bench`, or `make bench ONLY=NAME`: measures areas side by side with their peers, one JSON object a line."""

import importlib
import signal
import sys

AREAS = ("loader", "encode", "tokenizers", "encoders", "curate", "quality", "world_model", "sampling", "studio", "service", "kills")


def stopped_like_interrupted() -> None:
    """From now on SIGTERM ends this process as Ctrl-C does: what was started is ended first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def main(names: list[str]) -> int:
    """Prints the figures of the areas named, of all if none is; 2 for an unknown name, else 0 whether goals hold or not."""
    unknown = [name for name in names if name not in AREAS]
    if unknown:
        sys.stderr.write(f"there is no area called {unknown[0]!r}; there are {', '.join(AREAS)}\n")
        return 2
    stopped_like_interrupted()
    for name in names or AREAS:
        for figure in importlib.import_module(f"bench.{name}").figures():
            sys.stdout.write(figure.line() + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
