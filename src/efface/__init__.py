"""Take out what should not be there: text out of pictures, weights out of networks, concepts out of generators."""
