"""Further tiny transformers models, for the survey alone: of all but text.

Speech and sound, images, video, images with text, detection, segmentation, time series. See
``zoo_transformers`` for what a row is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from zoo_transformers import (
    DECODER,
    IMAGE,
    SEQ2SEQ,
    SPEECH,
    TEXT,
    TWO_TOWERS,
    Row,
    contrastive,
    ids,
    image,
    image64,
    pixels,
    speech,
)

_RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1], "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
_DETR = {
    "backbone_config": _RESNET, "use_timm_backbone": False, "use_pretrained_backbone": False,
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5,
}  # fmt: skip


def _shown(patches: int) -> dict[str, Tensor]:
    """An image and a text that begins with the places of its patches."""
    tokens = torch.cat([torch.full((2, patches), 98), ids(2, 6, vocabulary=97)], 1)
    return {
        "input_ids": tokens,
        "pixel_values": torch.randn(2, 3, 16, 16),
        "labels": tokens.clone(),
    }


SENSES: dict[str, Row] = {
    "speech_to_text": ("Speech2TextForConditionalGeneration", {**SEQ2SEQ, "input_feat_per_channel":
        16, "num_mel_bins": 16, "max_source_positions": 40, "max_target_positions": 40,
        "conv_channels": 16}, lambda _: {"input_features": torch.randn(2, 30, 16), "labels": ids(2,
        7)}),
    "moonshine": ("MoonshineForConditionalGeneration", {**DECODER, "encoder_num_hidden_layers": 2,
        "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4,
        "decoder_num_attention_heads": 4, "decoder_start_token_id": 1}, lambda _: {"input_values":
        torch.randn(2, 2000), "labels": ids(2, 7)}),
    "wav2vec2_bert": ("Wav2Vec2BertModel", {**SPEECH, "feature_projection_input_dim": 16}, lambda
        _: {"input_features": torch.randn(2, 20, 16)}),
    "wav2vec2_conformer": ("Wav2Vec2ConformerModel", SPEECH, speech),
    "unispeech_sat": ("UniSpeechSatModel", SPEECH, speech),
    "sew_d": ("SEWDModel", {**SPEECH, "squeeze_factor": 2, "max_position_embeddings": 64,
        "position_buckets": 8}, speech),
    "ast": ("ASTForAudioClassification", {**IMAGE, "num_mel_bins": 16, "max_length": 24,
        "patch_size": 8, "frequency_stride": 4, "time_stride": 4}, lambda _: {"input_values":
        torch.randn(2, 24, 16), "labels": torch.tensor([1, 3])}),
    "clap": ("ClapModel", {"text_config": {**TEXT, "projection_dim": 16}, "audio_config":
        {"spec_size": 32, "window_size": 4, "num_mel_bins": 8, "patch_size": 4, "patch_stride": [4,
        4], "hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [1, 1],
        "num_attention_heads": [2, 2], "num_hidden_layers": 2, "projection_dim": 16,
        "enable_fusion": False}, "projection_dim": 16}, lambda _: {"input_ids": ids(2, 10),
        "input_features": torch.randn(2, 1, 96, 8), "is_longer": torch.zeros(2, 1).bool(),
        "return_loss": True}),
    "encodec": ("EncodecModel", {"hidden_size": 16, "num_filters": 4, "upsampling_ratios": [4, 2],
        "codebook_size": 16, "codebook_dim": 16, "num_lstm_layers": 1, "normalize": False}, lambda
        _: {"input_values": torch.randn(2, 1, 160)}),
    "dac": ("DacModel", {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4],
        "decoder_hidden_size": 32, "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 4},
        lambda _: {"input_values": torch.randn(2, 1, 160)}),
    "vits": ("VitsModel", {"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "ffn_dim": 32, "flow_size": 16, "spectrogram_bins": 9,
        "upsample_initial_channel": 16, "upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8],
        "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]],
        "prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 1,
        "duration_predictor_num_flows": 2, "depth_separable_channels": 2,
        "depth_separable_num_layers": 1}, lambda _: {"input_ids": ids(1, 6, vocabulary=20)}),
    "univnet": ("UnivNetModel", {"model_in_channels": 8, "model_hidden_channels": 8,
        "num_mel_bins": 8, "resblock_kernel_sizes": [3], "resblock_stride_sizes": [4],
        "resblock_dilation_sizes": [[1, 3]], "kernel_predictor_hidden_channels": 8,
        "kernel_predictor_num_blocks": 1}, lambda _: {"input_features": torch.randn(2, 6, 8)}),
    "detr": ("DetrForObjectDetection", {**_DETR}, lambda _: {"pixel_values": torch.randn(2, 3, 64,
        64)}),
    "conditional_detr": ("ConditionalDetrForObjectDetection", {**_DETR}, lambda _: {"pixel_values":
        torch.randn(2, 3, 64, 64)}),
    "segformer_seg": ("SegformerForSemanticSegmentation", {"num_encoder_blocks": 2, "depths": [1,
        1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [7, 3], "strides": [4, 2],
        "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "num_labels": 5, "drop_path_rate":
        0.0, "decoder_hidden_size": 16}, lambda _: {"pixel_values": torch.randn(2, 3, 64, 64),
        "labels": torch.randint(0, 5, (2, 64, 64))}),
    "dpt": ("DPTForDepthEstimation", {**IMAGE, "num_hidden_layers": 4, "backbone_out_indices": [0,
        1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16, "image_size": 32,
        "patch_size": 8}, lambda _: {"pixel_values": torch.randn(2, 3, 32, 32)}),
    "glpn": ("GLPNForDepthEstimation", {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16],
        "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2], "decoder_hidden_size": 16,
        "drop_path_rate": 0.0}, lambda _: {"pixel_values": torch.randn(2, 3, 64, 64)}),
    "upernet": ("UperNetForSemanticSegmentation", {"backbone_config": {"model_type": "convnext",
        "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "out_features": ["stage1",
        "stage2", "stage3", "stage4"]}, "hidden_size": 16, "pool_scales": [1, 2],
        "auxiliary_channels": 8, "auxiliary_in_channels": 16, "num_labels": 5}, lambda _:
        {"pixel_values": torch.randn(2, 3, 64, 64), "labels": torch.randint(0, 5, (2, 64, 64))}),
    "owlvit": ("OwlViTModel", TWO_TOWERS, lambda _: {"input_ids": ids(2, 10), "attention_mask":
        torch.ones(2, 10, dtype=torch.long), "pixel_values": torch.randn(2, 3, 16, 16),
        "return_loss": True}),
    "clipseg": ("CLIPSegModel", TWO_TOWERS, contrastive),
    "groupvit": ("GroupViTModel", {"text_config": {**TEXT, "eos_token_id": 98}, "vision_config":
        {**IMAGE, "depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 4]},
        "projection_dim": 16, "projection_intermediate_dim": 32}, contrastive),
    "videomae": ("VideoMAEForVideoClassification", {**IMAGE, "num_frames": 4, "tubelet_size": 2},
        lambda _: {"pixel_values": torch.randn(2, 4, 3, 16, 16), "labels": torch.tensor([1, 3])}),
    "timesformer": ("TimesformerForVideoClassification", {**IMAGE, "num_frames": 2}, lambda _:
        {"pixel_values": torch.randn(2, 2, 3, 16, 16), "labels": torch.tensor([1, 3])}),
    "vivit": ("VivitForVideoClassification", {**IMAGE, "num_frames": 4, "tubelet_size": [2, 4, 4]},
        lambda _: {"pixel_values": torch.randn(2, 4, 3, 16, 16), "labels": torch.tensor([1, 3])}),
    "efficientnet": ("EfficientNetForImageClassification", {"initializer_range": 0.3, "image_size":
        32, "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320, "num_labels":
        5}, image),
    "hiera": ("HieraForImageClassification", {"image_size": [32, 32], "embed_dim": 8, "depths": [1,
        1], "num_heads": [1, 2], "patch_stride": [4, 4], "query_stride": [2, 2],
        "masked_unit_size": [2, 2], "num_query_pool": 1, "num_labels": 5, "embed_dim_multiplier":
        2.0}, lambda _: {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([1,
        3])}),
    "mobilevitv2": ("MobileViTV2ForImageClassification", {"image_size": 64, "width_multiplier":
        0.125, "base_attn_unit_dims": [64, 64, 64], "n_attn_blocks": [1, 1, 1], "num_labels": 5},
        image),
    "pvt_v2": ("PvtV2ForImageClassification", {"image_size": 64, "num_encoder_blocks": 2, "depths":
        [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [7, 3], "strides": [4,
        2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "num_labels": 5, "drop_path_rate":
        0.0}, image64),
    "vitdet": ("VitDetModel", {**IMAGE, "window_block_indices": [0], "window_size": 2,
        "residual_block_indices": [1]}, pixels),
    "layoutlmv3": ("LayoutLMv3ForTokenClassification", {**TEXT, "input_size": 16, "patch_size": 4,
        "coordinate_size": 4, "shape_size": 8, "num_labels": 3, "visual_embed": True,
        "max_2d_position_embeddings": 64}, lambda _: {"input_ids": ids(2, 6), "bbox":
        torch.randint(0, 60, (2, 6, 4)).sort(-1).values, "pixel_values": torch.randn(2, 3, 16, 16),
        "labels": torch.randint(0, 3, (2, 6))}),
    "lxmert": ("LxmertModel", {**TEXT, "l_layers": 1, "x_layers": 1, "r_layers": 1,
        "visual_feat_dim": 16}, lambda _: {"input_ids": ids(2, 8), "visual_feats": torch.randn(2,
        5, 16), "visual_pos": torch.rand(2, 5, 4)}),
    "visual_bert": ("VisualBertModel", {**TEXT, "visual_embedding_dim": 16}, lambda _:
        {"input_ids": ids(2, 8), "visual_embeds": torch.randn(2, 5, 16)}),
    "git": ("GitForCausalLM", {**TEXT, "vision_config": {**IMAGE}}, lambda _: {"input_ids": ids(2,
        8), "pixel_values": torch.randn(2, 3, 16, 16), "labels": ids(2, 8)}),
    "llava": ("LlavaForConditionalGeneration", {"text_config": {"model_type": "llama", **DECODER},
        "vision_config": {"model_type": "clip_vision_model", **IMAGE, "projection_dim": 16},
        "image_token_index": 98, "image_token_id": 98, "vision_feature_layer": -1}, lambda _:
        _shown(16)),
    "paligemma": ("PaliGemmaForConditionalGeneration", {"text_config": {"model_type": "gemma",
        **DECODER}, "vision_config": {"model_type": "siglip_vision_model", **IMAGE,
        "vision_use_head": False}, "image_token_index": 98, "image_token_id": 98, "projection_dim":
        32}, lambda _: {**_shown(16), "token_type_ids": torch.ones(2, 22, dtype=torch.long)}),
    "blip2": ("Blip2ForConditionalGeneration", {"text_config": {"model_type": "opt", **TEXT,
        "ffn_dim": 64, "word_embed_proj_dim": 32}, "vision_config": {**IMAGE}, "qformer_config":
        {**TEXT, "encoder_hidden_size": 32}, "num_query_tokens": 4, "image_token_index": 98},
        lambda _: _shown(4)),
    "autoformer": ("AutoformerModel", {"prediction_length": 4, "context_length": 8,
        "lags_sequence": [1, 2], "num_time_features": 1, "d_model": 16, "encoder_layers": 1,
        "decoder_layers": 1, "label_length": 2, "moving_average": 3, "use_cache": False}, lambda _:
        {"past_values": torch.randn(2, 10), "past_time_features": torch.randn(2, 10, 1),
        "past_observed_mask": torch.ones(2, 10), "future_values": torch.randn(2, 4),
        "future_time_features": torch.randn(2, 4, 1)}),
    "informer": ("InformerModel", {"prediction_length": 4, "context_length": 6, "lags_sequence":
        [1, 2], "num_time_features": 1, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "use_cache": False}, lambda _: {"past_values": torch.randn(2, 8), "past_time_features":
        torch.randn(2, 8, 1), "past_observed_mask": torch.ones(2, 8), "future_values":
        torch.randn(2, 4), "future_time_features": torch.randn(2, 4, 1)}),
    "patchtsmixer": ("PatchTSMixerForPrediction", {"context_length": 16, "patch_length": 4,
        "patch_stride": 4, "num_input_channels": 2, "d_model": 8, "num_layers": 1,
        "prediction_length": 4}, lambda _: {"past_values": torch.randn(2, 16, 2), "future_values":
        torch.randn(2, 4, 2)}),
    "timesfm": ("TimesFmModelForPrediction", {"hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "patch_length": 4,
        "context_length": 16, "horizon_length": 4, "quantiles": [0.5]}, lambda _: {"past_values":
        [torch.randn(12), torch.randn(16)]}),
    "sam": ("SamModel", {"vision_config": {**IMAGE, "output_channels": 16, "num_pos_feats": 8,
        "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 32, "image_size": 32,
        "patch_size": 8}, "prompt_encoder_config": {"hidden_size": 16, "image_size": 32,
        "patch_size": 8, "mask_input_channels": 4}, "mask_decoder_config": {"hidden_size": 16,
        "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim":
        16}}, lambda _: {"pixel_values": torch.randn(2, 3, 32, 32), "input_points": torch.rand(2,
        1, 1, 2) * 32}),
    "rt_detr": ("RTDetrForObjectDetection", {"backbone_config": {"model_type": "rt_detr_resnet",
        "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type":
        "basic", "out_features": ["stage2", "stage3", "stage4"]}, "encoder_hidden_dim": 16,
        "encoder_in_channels": [8, 16, 16], "feat_strides": [8, 16, 32], "encoder_layers": 1,
        "encoder_ffn_dim": 16, "encoder_attention_heads": 2, "d_model": 16, "decoder_in_channels":
        [16, 16, 16], "decoder_ffn_dim": 16, "decoder_layers": 1, "decoder_attention_heads": 2,
        "num_queries": 5, "num_denoising": 0}, lambda _: {"pixel_values": torch.randn(2, 3, 64,
        64)}),
}  # fmt: skip
