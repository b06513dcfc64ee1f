"""Other ways to an answer that turning the image does not change: the rivals PREA is measured against."""
