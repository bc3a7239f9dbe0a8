"""Drop-ins: the names of other libraries, on the ops of this one.

Same names, arguments, defaults, state dicts and errors as the originals; a module is imported with or without its peer. Results
agree to rounding; losses come in float32 where the original rounds them to the features' dtype, and sums are float32 whatever
the input. Patches (`install`) make unmodified code use the drop-ins, and undo themselves: call `.remove()`, or use them in
a `with` statement.

| theirs | ours | unmodified code |
|---|---|---|
| `open_clip.loss.ClipLoss`, `SigLipLoss` | `open_clip.ClipLoss`, `SigLipLoss` | `open_clip.install()`, `python -m cfmvit.integrations.open_clip ...` |
| `torchvision.ops.roi_align`, `RoIAlign`, `MultiScaleRoIAlign` | same names in `torchvision` | `torchvision.install()` |
| MAE's `random_masking`, the decoder's unshuffle, `forward_loss` | `mae.random_masking`, `unshuffle`, `forward_loss` | `mae.install(model)` |
| `timm.layers.PatchDropout`, `PatchDropoutWithIndices`, `patch_dropout_forward` | same names in `timm` | `timm.install()` |
| `detectron2.layers.ROIAlign` | `detectron2.ROIAlign` | `torchvision.install("detectron2")` |
| `mmcv.ops.roi_align`, `RoIAlign` | same names in `mmcv` | |
| `transformers`' `clip_loss`, `CLIPModel`'s loss | `huggingface.clip_loss`, of embeddings | `huggingface.install()` |
| `ViTMAEEmbeddings.random_masking`, `ViTMAEForPreTraining`'s loss (transformers 4 and 5) | `huggingface.random_masking`, `forward_loss` | `huggingface.install()` |

What an op can't compute goes the original's way, and is said once in a warning; so do function transforms, second derivatives
and, without a word, `torch.jit.script`. What an install does not find in the peer is named in a warning. `torch.compile` sees
every install: where one changes a class (open_clip, transformers, a MAE class), what was compiled is compiled again, so enter it
once, around the whole training.
"""
