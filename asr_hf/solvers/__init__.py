"""Linear solvers: vectors and operators, nothing of speech."""
