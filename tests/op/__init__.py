"""The contract of the op, sentence by sentence, for every implementation of it."""
