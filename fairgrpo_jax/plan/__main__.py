"""``python -m fairgrpo_jax.plan``: whether a run fits into memory, and how fast it can be."""

import sys

from fairgrpo_jax import commandline, hosts
from fairgrpo_jax.plan import here
from fairgrpo_jax.plan.plan import main


if __name__ == "__main__":
    if "--devices" in sys.argv:
        with hosts.alone(), commandline.one_line_errors():
            here.main(sys.argv[1:])
    else:
        main()
