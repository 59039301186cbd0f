"""Networks as plain modules: tensors in, tensors out. They know neither configs nor trainers."""
