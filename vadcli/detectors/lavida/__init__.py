"""LAVIDA: a multimodal LLM's understanding of a clip, projected into SAM2's mask decoder, gives a score and a mask a frame."""
