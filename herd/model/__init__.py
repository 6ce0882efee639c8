"""Floor 4: the one definition of the Llama 3.1 transformer. Importing the package alone doesn't import torch."""
