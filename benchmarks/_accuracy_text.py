"""The text around the figures of accuracy.md, and the figures that others have published."""

from __future__ import annotations

QUOTED = """\
These figures are copied from the tables of the LAVIDA paper, in percent. Nothing of it was run here. No interval was
published for any of these rows.

Its Table 2, pixel ROC-AUC on UCSD Ped2: masks at 158×238, every frame scored (interval 1), the whole test set of 12
clips. The nearest column above is "pixel ROC-AUC at 158×238"; it is over {count} clips.

| method | training | pixel ROC-AUC |
|---|---|---|
| AdaCLIP | fine-tuned | 53.06 |
| AnomalyCLIP | fine-tuned | 54.25 |
| DDAD | supervised | 55.87 |
| SimpleNet | supervised | 52.49 |
| DRAEM | supervised | 69.58 |
| TAO | fine-tuned | 75.11 |
| LAVIDA, the paper itself | zero-shot | 87.68 |

Its Table 1 has frame figures on other data sets, which are not measured above. They are over all frames of the test set
together. Every 4th frame of UBnormal is sampled, every 2nd of ShanghaiTech, and every 128th of UCF-Crime and XD-Violence;
a score is carried forward to the next sampled frame. The published evaluator appends artificial end points (0, 0) and
(1, 1) to labels and scores; `vadcli eval` does this only with `--endpoints`. On XD-Violence, the published evaluator
computes ROC-AUC, but the table says AP.

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

The paper's own tables differ on the full model: ShanghaiTech is 85.28 in Tables 1 and 4, 85.02 in Table 3 and 80.64
in Table 5.
"""

PAGE = """\
# Accuracy

Written by `python benchmarks/accuracy.py`; don't edit. Figures with their 95 % intervals from 1,000 resamples of the clips.

## UCSD Ped2, measured here

{count} test clips ({clips}), {frames} frames of 360×240 at 10 per second. No row has seen a label or a training clip.
Every figure comes from `vadcli eval`. The last column is the difference from the first row; each resample draws the
same clips for both rows.

| what | frame ROC-AUC | frame AP | pixel ROC-AUC | pixel ROC-AUC at 158×238 | pixel AP | frame ROC-AUC minus the first row's |
|---|---|---|---|---|---|---|
{figures}

{verdict}

The box of 21×21 pixels is about what the motion detector averages over (a Gaussian of 8 pixels); the one of 5×5
pixels is the usual "plain frame difference". With {count} clips the intervals are wide. In Ped2 most anomalies
are fast, so methods that give fast things a high score do well; expect less elsewhere. The scales of flow and difference
do not carry over to another camera. Both know nothing of cuts, light or a camera that moves, and cannot say how often a
value is usual. ROC-AUC does not measure any of this.

## How each row came about

PED2 stands for the data set's folder.

- **`motion`**: all clips scanned together, as frame folders of one camera, which is fitted on these same clips.
- **its channels alone**: the same camera model, read back from the output's `cameras/`; *speed* is
  how fast each cell moves, *disorder* how much of that goes in different directions. Both are means over space and
  time, here over the whole clip at once; a frame's score is its highest cell.
- **frame difference**: the change of a pixel to the frame before, averaged over a box; a frame's score is its highest
  box, or the mean of the whole frame if the row says so. The score of a pixel is that of its box, or its own change.
- **optical flow**: the length of OpenCV's DIS flow (medium) from the frame before, averaged over a box.
- **MOG2**: OpenCV's background subtraction (variance threshold 16, no shadows), as common motion scanners use it; it
  sees all clips once before it scores them. A frame's score is the share of foreground; pixels are foreground or not,
  which lowers its pixel figures.

The frame scores of all rows are smoothed in the same way (Gaussian, 0.4 s); pixel scores are masks of 8 bits.
`python benchmarks/accuracy.py` runs the scan below and writes the other rows' outputs as a scan writes them. Then
two commands per row give its figures:

```
{commands}
```

## Quoted, not measured here

{quoted}"""
