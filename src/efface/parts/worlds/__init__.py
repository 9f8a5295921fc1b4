"""A procedural world of captioned pictures, its judge, and a tiny text-to-image pipeline that draws it."""
