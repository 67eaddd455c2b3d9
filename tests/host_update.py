"""What crosses four processes in an update of a model with every mechanism; run by tests/test_hosts.py."""

import sys

from fairgrpo_jax import hosts, mesh


COUNT = hosts.start(sys.argv[sys.argv.index("--distributed") + 1])
mesh.simulate("4x1", COUNT)

import jax  # noqa: E402

from fairgrpo_jax import learner  # noqa: E402
from tests import compiled_text, test_staged  # noqa: E402


def main():
    params, config = test_staged.model("everything")
    devices = mesh.make("4x1")
    own = learner.take((jax.device_get(test_staged.batch(config)), test_staged.rollouts()), hosts.rows(4))
    with jax.set_mesh(devices):
        placed = jax.device_put(jax.device_get(params), mesh.shardings(params, devices))
        prompt, arrays = mesh.put(own, devices)
        lowered = test_staged.program.lower(placed, {}, prompt, arrays, test_staged.plan(config, 2, True))
        text = lowered.compile().as_text()
    assert jax.process_count() == COUNT == 4 and len(jax.local_devices()) == 1
    assert compiled_text.exchanged(text)
    found = compiled_text.strange(text, params)
    assert not found, found
    print(f"nothing strange crosses to process {jax.process_index()}", file=sys.stderr)


if __name__ == "__main__":
    with hosts.alone():
        main()
