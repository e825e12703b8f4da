"""What the public base models bring along, taught to small ones made from nothing, on the synthetic world.

    pictures    SAM2's image encoder and mask decoder, CLIP's words: what is where in a still
    questions   Qwen2-VL's part: whether a clip shows what a name says

Behind these two the paper's own training (`vadcli.train.step`) begins, as it does behind the public models.
"""
