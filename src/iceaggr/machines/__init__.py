"""Training in several processes: torchrun on this machine, or on several through a TrainJob."""
