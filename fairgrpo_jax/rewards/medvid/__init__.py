"""Parsers and metrics of the eight tasks of MedVidBench, one module a kind of answer, each in two readings.

``leaderboard=True`` is what the owners' board computes, with its quirks: much of what an answer leaves out is not
counted. Strictly, what is missing is wrong; rewards use this reading alone, since a reward that can be had by leaving
things out is a defect.

Source of the first reading: the board's scorers (MedVidBench-Leaderboard/evaluation), of Su et al., MedGRPO, arXiv
2512.06581. The strict reading is ours.
"""
