"""The rules of builds: pure functions and frozen data, standard library only."""
