"""Training of LAVIDA: segmentation data sets, the pseudo-anomalies made from them, and the losses.

Importing this package does not load torch.
"""
