"""From the user's source to packed, split pictures."""
