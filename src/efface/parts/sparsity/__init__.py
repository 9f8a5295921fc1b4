"""Which weights of a network stay: masks, how many of each layer, by which score, and when."""
