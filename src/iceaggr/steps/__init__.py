"""The steps of the pipeline as library calls: the same for containers, command line and tests."""
