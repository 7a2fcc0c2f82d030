"""`python -m worldloom.pipeline` is `worldloom`."""

from worldloom.pipeline.cli import main

if __name__ == "__main__":
    main()
