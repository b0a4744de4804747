"""``python -m llm_router``: the same as the command ``llm-router``."""

from llm_router.cli import main

if __name__ == "__main__":
    main()
