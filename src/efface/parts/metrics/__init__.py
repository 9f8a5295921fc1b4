"""Measures of erased pictures: pixels, structure, regions, text residue and feature distance, in NumPy.

Pictures are (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) arrays of uint8, uint16 or floats in [0, 1]; grey is repeated to
RGB and alpha is left aside. Masks are boolean (h, w), True = taken away. Every measure of a pair asserts equal sizes
and accumulates in float64; ``nan`` says that it is not defined there (an empty region, a picture too small).
"""
