"""The text around the figures of accuracy.md, and the figures that others have published."""

from __future__ import annotations

QUOTED = """\
The figures in the next tables are copied from the tables of the LAVIDA paper, in percent. None of them was measured with
vadcli. The paper gives no confidence intervals.

Table 2 of the paper has the pixel ROC-AUC on UCSD Ped2, over all 12 test clips. Every frame was scored, with masks at
158×238. You can compare these values with the column "pixel ROC-AUC at 158×238" in the first table of this page, but
that column is over only {count} clips.

| method | training | pixel ROC-AUC |
|---|---|---|
| AdaCLIP | fine-tuned | 53.06 |
| AnomalyCLIP | fine-tuned | 54.25 |
| DDAD | supervised | 55.87 |
| SimpleNet | supervised | 52.49 |
| DRAEM | supervised | 69.58 |
| TAO | fine-tuned | 75.11 |
| LAVIDA, the paper itself | zero-shot | 87.68 |

Table 1 of the paper has frame ROC-AUCs and APs on other data sets. Each value is computed over all frames of a test set
together. The authors of the paper scored only these frames:
- every 4th frame of UBnormal;
- every 2nd frame of ShanghaiTech;
- every 128th frame of UCF-Crime and XD-Violence.

A frame that was not scored gets the score of the last scored frame before it. The published evaluator appends two
artificial frames: one with label 0 and score 0, and one with label 1 and score 1. `vadcli eval` appends these frames
only with `--endpoints`.

On XD-Violence, the published evaluator computes the ROC-AUC. But in the paper's table, the heading of the column for
XD-Violence is AP.

| method | training | UBnormal ROC-AUC | ShanghaiTech ROC-AUC | UCF-Crime ROC-AUC | XD-Violence AP as printed |
|---|---|---|---|---|---|
| MemAE (ICCV 2019) | unsupervised | – | 71.2 | – | – |
| GODS (ICCV 2019) | unsupervised | – | – | 70.4 | 61.56 |
| MSMA (ICLR 2021) | unsupervised | – | 76.7 | 64.5 | – |
| GCL (CVPR 2022) | unsupervised | – | 79.62 | 74.2 | – |
| FastAno (WACV 2022) | unsupervised | – | 72.2 | – | – |
| FPDM (ICCV 2023) | unsupervised | 62.7 | 78.6 | 74.7 | – |
| MULDE (CVPR 2024) | unsupervised | 72.8 | 81.3 | 78.5 | – |
| AED-MAE (CVPR 2024) | unsupervised | 58.5 | 79.1 | – | – |
| MA-PDM (AAAI 2025) | unsupervised | 63.4 | 79.2 | – | – |
| CLIP-TSA (ICIP 2023) | weakly supervised | – | – | 87.58 | 82.19 |
| TPWNG (CVPR 2024) | weakly supervised | – | – | 87.79 | 83.68 |
| VadCLIP (AAAI 2024) | weakly supervised | – | – | 88.02 | 84.51 |
| Holmes-VAU (CVPR 2025) | weakly supervised | – | – | 87.68 | 88.96 |
| VERA (CVPR 2025) | weakly supervised | – | – | 86.55 | 56.27 |
| PI-VAD (CVPR 2025) | weakly supervised | – | – | 90.33 | 85.37 |
| Anomize (CVPR 2025) | weakly supervised | – | – | 84.49 | 69.31 |
| AnomalyRuler (ECCV 2024) | few-shot | 71.9 | 85.2 | – | – |
| LAVAD (CVPR 2024) | zero-shot | – | – | 80.82 | 62.01 |
| AnyAnomaly (WACV 2026) | zero-shot | 74.5 | 79.7 | 80.7 | – |
| EventVAD (ACM 2025) | zero-shot | – | – | 82.03 | 64.04 |
| LAVIDA, the paper itself | zero-shot | 76.45 | 85.28 | 82.18 | 90.62 |

The paper reports three different frame AUCs of the full model on ShanghaiTech: 85.28 in Tables 1 and 4, 85.02 in
Table 3, and 80.64 in Table 5.
"""

PAGE = """\
# Accuracy

This page compares `motion` with simple methods on UCSD Ped2, and quotes figures of other methods.
`python benchmarks/accuracy.py` writes the page, so do not edit the page. The 95 % confidence intervals come from 1,000
resamples of the clips.

## UCSD Ped2, measured with vadcli

The footage is {count} test clips ({clips}) with {frames} frames of 360×240, at 10 frames per second. No method in this table
has used a label or a training clip. Every figure comes from `vadcli eval`.

The last column has the frame ROC-AUC of the row minus the frame ROC-AUC of the first row. For the confidence interval
of this difference, each resample has the same clips for both rows.

| what | frame ROC-AUC | frame AP | pixel ROC-AUC | pixel ROC-AUC at 158×238 | pixel AP | frame ROC-AUC minus the first row |
|---|---|---|---|---|---|---|
{figures}

{verdict}

The box of 21×21 pixels is about as large as the area over which `motion` averages (a Gaussian of 8 pixels). The row
"frame difference, highest 5×5 box" is the method that is usually called "plain frame difference".

With {count} clips, the confidence intervals are wide. Most anomalies of Ped2 are fast. So a method does well on Ped2 if it
gives high scores to fast things. Expect lower ROC-AUC and AP on other footage.

Optical flow and frame difference have weaknesses that ROC-AUC does not show:
- The values of optical flow and frame difference do not show what is rare for a camera. So a threshold for one camera
  does not fit another camera.
- Optical flow and frame difference fail after cuts, after changes of light, and if the camera moves.

## How each row was measured

In the commands, PED2 is the folder of the data set UCSD Ped2.

- **`motion`**: all clips are scanned together, as frame folders of one camera. The camera model is fitted on these same
  clips.
- **speed or disorder of `motion` alone**: *speed* is how fast the pixels near a cell move. *Disorder* is the part of
  this speed that goes in different directions. Both are means over space and time, with the camera model of the row
  "`motion`". The score of a frame is the highest value of its cells. A clip is measured in one piece, but a scan divides
  the clip into parts.
- **frame difference**: the change of a pixel since the frame before, averaged over a box. The score of a frame is the
  highest value of its boxes. The score of a pixel is the value of the box around the pixel.
- **frame difference, mean of the frame**: the score of a frame is the mean change of its pixels. The score of a pixel
  is the change of this pixel.
- **optical flow**: the length of OpenCV's DIS flow (medium) from the frame before, averaged over a box.
- **MOG2**: OpenCV's background subtraction (variance threshold 16, no shadows), as in common motion scanners. MOG2
  reads all clips once before it scores them. The score of a frame is the share of foreground pixels. A pixel has only
  two possible scores (foreground or background), which lowers the pixel ROC-AUC and the pixel AP.

The frame scores of all methods are smoothed in the same way (Gaussian, 0.4 s). The pixel scores of all methods are
rounded to 8 bits, as in the masks of a scan.

`python benchmarks/accuracy.py` runs the commands below. The scan writes the scores of the row `motion`. For all other
rows, the script itself writes scores in the format of a scan. Then two `vadcli eval` commands per row compute the
figures:

```
{commands}
```

## Quoted, not measured with vadcli

{quoted}"""
