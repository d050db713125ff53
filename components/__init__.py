"""Container steps: typed KFP signatures around one library call each."""
