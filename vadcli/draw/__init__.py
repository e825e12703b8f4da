"""Draws rendered videos: the score curve, the heat map of masks, the overlay of a frame, and the MP4 file."""
