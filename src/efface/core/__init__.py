"""What a method, a card, a claim and a run are; the catalogue."""
