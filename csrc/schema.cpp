// Every schema of the library: its table of contents. Backward passes are ops of their own.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(cfmvit, m) {
  // masking: rank noise (B, N) -> keep (B, kept), masked (B, N - kept), restore (B, N), int64
  m.def("random_masking(Tensor noise, SymInt kept) -> (Tensor, Tensor, Tensor)");

  // masking: tokens (B, N, D), index (B, K), pos_embed (N, D), keep_pos (B,) bool -> (B, K, D), and the
  // gradients of tokens and pos_embed (each of no elements where it is not needed).
  m.def("gather_tokens(Tensor tokens, Tensor index, Tensor? pos_embed, Tensor? keep_pos) -> Tensor");
  m.def(
      "gather_tokens_backward(Tensor grad, Tensor index, Tensor? keep_pos, SymInt num_tokens, bool "
      "needs_tokens, "
      "bool needs_pos) -> (Tensor, Tensor)");

  // masking: gather_tokens of keep (B, K) and of masked (B, M) -> (B, K, D), (B, M, D)
  m.def(
      "split_tokens(Tensor tokens, Tensor keep, Tensor masked, Tensor? pos_embed, Tensor? keep_pos) -> "
      "(Tensor, Tensor)");
  m.def(
      "split_tokens_backward(Tensor grad_visible, Tensor grad_masked, Tensor keep, Tensor masked, Tensor? "
      "keep_pos, "
      "bool needs_tokens, bool needs_pos) -> (Tensor, Tensor)");

  // masking: visible (B, K, D), mask_token (D,), restore (B, N), pos_embed (N, D) -> (B, N, D), and the
  // gradients of visible, mask_token and pos_embed.
  m.def("restore_tokens(Tensor visible, Tensor mask_token, Tensor restore, Tensor? pos_embed) -> Tensor");
  m.def(
      "restore_tokens_backward(Tensor grad, Tensor restore, SymInt kept, bool needs_pos) -> (Tensor, Tensor, "
      "Tensor)");

  // masking: images (B, C, H, W), index (B, K), mean and std (C,) float64 -> (B, K, C * P * P), and the
  // gradient of images.
  m.def(
      "gather_patches(Tensor images, Tensor? index, SymInt patch_size, Tensor? mean, Tensor? std, ScalarType "
      "dtype) "
      "-> Tensor");
  m.def(
      "gather_patches_backward(Tensor grad, Tensor? index, SymInt patch_size, Tensor? std, SymInt channels, "
      "SymInt height, SymInt width) -> Tensor");

  // reconstruction: pred, target (B, N, D), index (B, M) -> losses (B, M), and the gradient of pred.
  m.def("masked_cosine_loss(Tensor pred, Tensor target, Tensor? index, float eps) -> Tensor");
  m.def(
      "masked_cosine_loss_backward(Tensor grad, Tensor pred, Tensor target, Tensor? index, float eps) -> "
      "Tensor");

  // reconstruction: hidden (R, H), weight (D, H), bias (D,), target (R, D) -> losses (R,), and the gradients
  // of hidden, weight and bias, the last two in float32 or better.
  m.def(
      "linear_masked_cosine_loss(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, float eps) -> "
      "Tensor");
  m.def(
      "linear_masked_cosine_loss_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor "
      "target, "
      "float eps) -> (Tensor, Tensor, Tensor)");

  // reconstruction: the sum of those losses with its gradients by hidden, weight and bias (of no elements
  // where not needed), and those times the gradient of the sum, in the dtypes of the inputs.
  m.def(
      "linear_masked_cosine_sum(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, float eps, bool "
      "needs_hidden, bool needs_weight) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_masked_cosine_sum_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor "
      "grad_hidden, Tensor grad_weight, Tensor grad_bias) -> (Tensor, Tensor, Tensor)");

  // reconstruction: pred (B, N or M, P * P * C), images (B, C, H, W), index (B, M) -> losses (B, M), and the
  // gradient of pred.
  m.def(
      "masked_pixel_loss(Tensor pred, Tensor images, Tensor index, SymInt patch_size, bool normalize) -> "
      "Tensor");
  m.def(
      "masked_pixel_loss_backward(Tensor grad, Tensor pred, Tensor images, Tensor index, SymInt patch_size, "
      "bool normalize) -> Tensor");

  // regions: RoIAlign. input (B, C, H, W), rois (R, 5): image number, x1, y1, x2, y2, in float32 or float64,
  // the type of arithmetic on coordinates -> (R, C, P, Q), and the gradient of input. channels_last: the
  // layout of the result.
  m.def(
      "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt batch, SymInt channels, "
      "SymInt height, "
      "SymInt width, int sampling_ratio, bool aligned, bool channels_last) -> Tensor");

  // regions: RoIAlign of each box on a level of its own. features: L maps (B, C, H_l, W_l), rois (R, 5),
  // levels (R,) int64 in [0, L) -> (R, C, P, Q), and the gradients of the maps.
  m.def(
      "multilevel_roi_align(Tensor[] features, Tensor rois, Tensor levels, float[] scales, SymInt "
      "pooled_height, "
      "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "multilevel_roi_align_backward(Tensor grad, Tensor rois, Tensor levels, float[] scales, SymInt batch, "
      "SymInt channels, SymInt[] heights, SymInt[] widths, int sampling_ratio, bool aligned, bool "
      "channels_last) "
      "-> Tensor[]");

  // regions: the level of each box in a pyramid of `count` maps, the finest of stride 2 ** finest. rois
  // (R, 5) -> (R,) int64
  m.def(
      "pyramid_levels(Tensor rois, int finest, int count, float canonical_scale, float canonical_level) -> "
      "Tensor");

  // regions: the mean over RoIAlign's bins. tokens (B, N, C), N = prefix + grid_height * grid_width, rois
  // (R, 5) -> (R, C), and the gradient of tokens, which are given to it only where they were normalised.
  m.def(
      "pool_regions(Tensor tokens, Tensor rois, SymInt grid_height, SymInt grid_width, float spatial_scale, "
      "SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool aligned, SymInt "
      "num_prefix_tokens, "
      "bool normalize) -> Tensor");
  m.def(
      "pool_regions_backward(Tensor grad, Tensor rois, Tensor? tokens, SymInt batch, SymInt num_tokens, "
      "SymInt grid_height, SymInt grid_width, float spatial_scale, SymInt pooled_height, SymInt "
      "pooled_width, "
      "int sampling_ratio, bool aligned, SymInt num_prefix_tokens) -> Tensor");

  // regions: detection scores from embeddings of any norm. region_embeds, vlm_embeds (R, C), text_embeds (1 +
  // n, C), the background first, exponent (n,) of the frozen tower's probability, objectness (R,),
  // temperature and vlm_temperature () -> (R, n); all but the embeddings in float32 or better
  m.def(
      "score_regions(Tensor region_embeds, Tensor text_embeds, Tensor? vlm_embeds, Tensor exponent, Tensor? "
      "objectness, "
      "Tensor temperature, Tensor vlm_temperature, float objectness_power, bool renormalize) -> Tensor");

  // contrastive: log-sum-exps over the negatives of each row and column of logits = logit_scale * image @
  // text.T, as two numbers, so that nothing is rounded at the size of a logit: log-sum-exp = logit_scale *
  // shift + log(sum). shift is a similarity near that of the largest logit, sum that of exp(logit_scale *
  // (similarity - shift)); the gradient of the sum stands for that of all, logit_scale * shift is a constant;
  // without negatives the logit of shift is -infinity and sum is 0. image (B, D), text (T, D), logit_scale
  // (), label_offset: none where no text belongs to an image, image_groups (B,), text_groups (T,) ->
  // similarity of the pairs (B,), image_shift (B,), image_sum (B,), text_shift (T,), text_sum (T,), and the
  // similarity of the largest logit in other groups (B,), (T,)
  m.def(
      "contrastive_lse(Tensor image, Tensor text, Tensor logit_scale, SymInt? label_offset, Tensor? "
      "image_groups, Tensor? text_groups) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "contrastive_lse_backward(Tensor image, Tensor text, Tensor logit_scale, SymInt? label_offset, Tensor "
      "image_shift, Tensor text_shift, Tensor grad_positive, Tensor grad_image_sum, Tensor grad_text_sum, "
      "bool needs_image, bool needs_text, bool full_precision) -> (Tensor, Tensor, Tensor)");

  // contrastive: sum (mean) of image_weight * softplus(log-sum-exp of the image - logit of the pair) +
  // text_weight * softplus(the same of the text), from what contrastive_lse gives, all (B,), with its
  // gradients by positive, image_sum, text_sum (B,) and logit_scale (); and those times the gradient of the
  // loss.
  m.def(
      "pair_loss(Tensor positive, Tensor image_shift, Tensor image_sum, Tensor text_shift, Tensor text_sum, "
      "Tensor logit_scale, float image_weight, float text_weight, bool mean) -> (Tensor, Tensor, Tensor, "
      "Tensor, Tensor)");
  m.def(
      "pair_loss_backward(Tensor grad, Tensor positive, Tensor image_sum, Tensor text_sum, Tensor "
      "logit_scale, Tensor grad_positive, Tensor grad_image_sum, Tensor grad_text_sum, Tensor grad_scale) -> "
      "(Tensor, Tensor, Tensor, Tensor)");

  // contrastive: contrastive_lse and pair_loss in one, of image (B, D) and text (T, D); text_weight is zero
  // unless T = B -> loss (), image_shift (B,), text_shift (T,), and the gradients of the loss by positive
  // (B,), image_sum (B,), text_sum (T,), and by logit_scale () as far as it goes through the pairs
  m.def(
      "info_nce(Tensor image, Tensor text, Tensor logit_scale, SymInt label_offset, float image_weight, "
      "float text_weight, bool mean) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "info_nce_backward(Tensor grad, Tensor image, Tensor text, Tensor logit_scale, SymInt label_offset, "
      "Tensor image_shift, Tensor text_shift, Tensor grad_positive, Tensor grad_image_sum, Tensor "
      "grad_text_sum, Tensor grad_scale, bool needs_image, bool needs_text) -> (Tensor, Tensor, Tensor)");

  // contrastive: sum of softplus(-+logit) over all pairs of image (B, D) and text (T, D), with its gradients
  // by image, text (of no elements where not needed), scale and bias in float32 or float64; and those times
  // the gradient of the loss.
  m.def(
      "sigmoid_loss(Tensor image, Tensor text, Tensor logit_scale, Tensor logit_bias, SymInt? label_offset, "
      "bool needs_image, bool needs_text) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "sigmoid_loss_backward(Tensor grad, Tensor image, Tensor text, Tensor logit_scale, Tensor logit_bias, "
      "Tensor grad_image, Tensor grad_text, Tensor grad_scale, Tensor grad_bias) -> (Tensor, Tensor, Tensor, "
      "Tensor)");
}
