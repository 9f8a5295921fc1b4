"""Train over clients that keep their data: sparse messages, and Flower as the engine that carries them."""
