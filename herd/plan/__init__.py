"""Floor 10: a training run before it is made: memory, communication, time, energy, cost. Torch only in `simulate`."""
