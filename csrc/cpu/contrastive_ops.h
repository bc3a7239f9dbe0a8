// The ops of the contrastive family that others are made of, on the CPU; schema.cpp says what they compute.
#pragma once

#include <optional>
#include <tuple>

#include "torch/stable_abi.h"

namespace cfmvit::contrastive {

using Lse = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
Lse contrastive_lse(Tensor image, Tensor text, Tensor logit_scale, std::optional<int64_t> label_offset,
                    std::optional<Tensor> image_groups, std::optional<Tensor> text_groups);

std::tuple<Tensor, Tensor, Tensor> contrastive_lse_backward(Tensor image, Tensor text, Tensor logit_scale,
                                                            std::optional<int64_t> label_offset,
                                                            Tensor image_shift, Tensor text_shift,
                                                            Tensor grad_positive, Tensor grad_image_sum,
                                                            Tensor grad_text_sum, bool needs_image,
                                                            bool needs_text, bool full_precision);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pair_loss(Tensor positive, Tensor image_shift,
                                                             Tensor image_sum, Tensor text_shift,
                                                             Tensor text_sum, Tensor logit_scale,
                                                             double image_weight, double text_weight,
                                                             bool mean);

}  // namespace cfmvit::contrastive
