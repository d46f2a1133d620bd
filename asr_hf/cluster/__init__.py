"""The Objective over MPI ranks: the only room that knows MPI."""
