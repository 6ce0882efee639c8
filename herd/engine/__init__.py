"""Floor 6: the one inference engine: rollouts, evaluation, guard and chat all ask it."""
