"""The detector `ask`: a public multimodal language model answers yes or no to one question per category."""
