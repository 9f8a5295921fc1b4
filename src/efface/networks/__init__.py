"""Methods that take weights, bits and layers out of networks."""
