"""The subgroup audit of any model's answers: for whom does it fail, and how sure is that?

``examine`` audits one model, ``compare`` several on the same records: arrays in, dicts out, in NumPy and SciPy alone.
``python -m fairgrpo_jax.evaluate`` reads files, calls them and writes the report.

>>> from fairgrpo_jax import audit
>>> found = audit.examine(["yes", "no"] * 30, ["yes"] * 60, {"sex": ["F", "M"] * 30})
>>> [(row["name"], row["figures"]["top1"]["value"]) for row in found["groups"]]
[('all', 0.5), ('F', 1.0), ('M', 0.0)]
"""

from fairgrpo_jax.audit.paired import compare as compare
from fairgrpo_jax.audit.settings import Settings as Settings
from fairgrpo_jax.audit.single import examine as examine
