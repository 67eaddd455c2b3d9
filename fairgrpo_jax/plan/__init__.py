"""Memory and time of a run before it starts: formulas, devices, and the compiler's own figures."""
