"""``python -m fairgrpo_jax.plan``: will it fit, and how fast can it be?"""

from fairgrpo_jax.plan.plan import main


if __name__ == "__main__":
    main()
