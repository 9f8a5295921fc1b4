"""Text in pictures: fonts, made-up words, styles, the drawing of them, and their detection."""
