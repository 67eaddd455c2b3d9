"""``python -m fairgrpo_jax.plan``: whether a run fits into memory, and how fast it can be."""

from fairgrpo_jax.plan.plan import main


if __name__ == "__main__":
    main()
