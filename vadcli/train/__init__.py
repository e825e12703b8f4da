"""Training LAVIDA: segmentation data sets, pseudo-anomalies made of them, and the losses. Importing this loads no torch."""
