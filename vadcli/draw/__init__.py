"""What is drawn: the score curve, the heat of masks, the overlay of a rendered frame, and MP4 files."""
