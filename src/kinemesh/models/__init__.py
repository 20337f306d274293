"""Networks: tensors in, tensors out. They know no file, no device and no data set."""
