"""Find the parts of decoders that write text, run them piece by piece, and leave parts out."""
