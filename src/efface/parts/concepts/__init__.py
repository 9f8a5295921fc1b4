"""What erasers of concepts share: slots of prompts, cross-attention, linear maps of text, adapters, roll-outs."""
