"""From a picture to people: image input, boxes, the predictor and runs over many files."""
