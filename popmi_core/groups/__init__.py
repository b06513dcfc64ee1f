"""Point groups of the square grid."""
