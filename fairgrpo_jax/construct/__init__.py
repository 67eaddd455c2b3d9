"""``python -m fairgrpo_jax.data construct``: experts' annotations of videos to questions and answers as MedVidBench.

A source reads annotations as ``Video`` objects (``annotated``; ``cholect50`` and ``avos`` are two). Clips are cut out
of them (``clips``). What is structured becomes questions by rule (``ruled``); texts are written by two language models
that see the frames, the experts' boxes on them and their annotations (``written``), and stay where the two agree
(``pairs``).
"""
