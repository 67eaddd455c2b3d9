"""``python -m fairgrpo_jax.study``."""

from fairgrpo_jax.study import main


if __name__ == "__main__":
    main()
