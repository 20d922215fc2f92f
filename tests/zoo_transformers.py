"""Tiny transformers models, from config alone: the main ones by name, and many architectures.

A row of the table is a class name, the options of its config and the kind of its inputs.
Nothing here is a pretrained weight, and no model is treated differently by the pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

TEXT: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 1, "use_cache": False,
}  # fmt: skip
DECODER = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "use_cache": False,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0, "pad_token_id": 0, "use_cache": False,
}  # fmt: skip
IMAGE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4, "num_labels": 5,
}  # fmt: skip
SPEECH: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "conv_dim": (16, 16), "conv_kernel": (5, 3), "conv_stride": (4, 2),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2,
    "layerdrop": 0.0, "apply_spec_augment": False, "mask_time_prob": 0.0,
    "ctc_loss_reduction": "mean", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
MOE = {**DECODER, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
GPT2 = {
    "vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "use_cache": False, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


def ids(*shape: int, vocabulary: int = 99) -> Tensor:
    return torch.randint(2, vocabulary, shape)


def padding(batch: int = 2, length: int = 10) -> Tensor:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, length - 3 :] = 0
    return mask


def causal(_: nn.Module) -> dict[str, Any]:
    tokens = ids(2, 10)
    return {"input_ids": tokens, "labels": tokens.clone()}


def padded(_: nn.Module) -> dict[str, Any]:
    tokens = ids(2, 10)
    return {"input_ids": tokens, "attention_mask": padding(), "labels": tokens.clone()}


def encoded(_: nn.Module) -> dict[str, Any]:
    return {"input_ids": ids(2, 10), "attention_mask": padding()}


def masked(_: nn.Module) -> dict[str, Any]:
    labels = ids(2, 10)
    labels[:, ::2] = -100
    return {"input_ids": ids(2, 10), "attention_mask": padding(), "labels": labels}


def seq2seq(_: nn.Module) -> dict[str, Any]:
    return {"input_ids": ids(2, 10), "attention_mask": padding(), "labels": ids(2, 7)}


def image(net: nn.Module) -> dict[str, Any]:
    side = net.config.image_size if isinstance(getattr(net.config, "image_size", None), int) else 16
    return {"pixel_values": torch.randn(2, 3, side, side), "labels": torch.tensor([1, 3])}


def pixels(net: nn.Module) -> dict[str, Any]:
    return {"pixel_values": image(net)["pixel_values"]}


def image64(_: nn.Module) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 64, 64), "labels": torch.tensor([1, 3])}


def speech(_: nn.Module) -> dict[str, Any]:
    return {"input_values": torch.randn(2, 200)}


def transcribed(_: nn.Module) -> dict[str, Any]:
    return {"input_features": torch.randn(2, 16, 40), "labels": ids(2, 7)}


def contrastive(net: nn.Module) -> dict[str, Any]:
    tokens = ids(2, 10)
    tokens[:, -1] = 98
    return {"input_ids": tokens, "pixel_values": torch.randn(2, 3, 16, 16), "return_loss": True}


TWO_TOWERS: dict[str, Any] = {
    "text_config": {**TEXT, "projection_dim": 16, "eos_token_id": 98}, "projection_dim": 16,
    "vision_config": {**IMAGE, "projection_dim": 16},
}  # fmt: skip

Inputs = Callable[[nn.Module], dict[str, Any]]
#: A class name, the options of its config, and what makes the inputs of a call.
Row = tuple[str, dict[str, Any], Inputs]

#: The models that the project's claims name.
MAIN: dict[str, Row] = {
    "gpt2": ("GPT2LMHeadModel", GPT2, causal),
    "llama": ("LlamaForCausalLM", DECODER, causal),
    "bert": ("BertForMaskedLM", TEXT, masked),
    "t5": ("T5ForConditionalGeneration", T5, seq2seq),
    "vit": ("ViTForImageClassification", IMAGE, image),
    "mixtral": ("MixtralForCausalLM", MOE, causal),
}

OTHERS: dict[str, Row] = {
    # decoders
    "llama_padded": ("LlamaForCausalLM", DECODER, padded),
    "llama_eager": ("LlamaForCausalLM", {**DECODER, "attn_implementation": "eager"}, padded),
    "gpt2_padded": ("GPT2LMHeadModel", GPT2, padded),
    "gpt2_eager": ("GPT2LMHeadModel", {**GPT2, "attn_implementation": "eager"}, padded),
    "qwen2": ("Qwen2ForCausalLM", DECODER, causal),
    "qwen3": ("Qwen3ForCausalLM", DECODER, causal),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**MOE, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32}, causal),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**MOE, "moe_intermediate_size": 32}, causal),
    "qwen3_next": ("Qwen3NextForCausalLM", {**MOE, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"]}, causal),
    "gemma": ("GemmaForCausalLM", DECODER, causal),
    "gemma2": ("Gemma2ForCausalLM", {**DECODER, "sliding_window": 4}, causal),
    "gemma3": ("Gemma3ForCausalLM", {**DECODER, "sliding_window": 4}, causal),
    "mistral": ("MistralForCausalLM", {**DECODER, "sliding_window": 4}, causal),
    "ministral": ("MinistralForCausalLM", {**DECODER, "sliding_window": 4}, causal),
    "phi": ("PhiForCausalLM", {**TEXT, "num_key_value_heads": 4}, causal),
    "phi3": ("Phi3ForCausalLM", {**DECODER, "original_max_position_embeddings": 64}, causal),
    "phimoe": ("PhimoeForCausalLM", MOE, causal),
    "gpt_neox": ("GPTNeoXForCausalLM", TEXT, causal),
    "gpt_neo": ("GPTNeoForCausalLM", {**TEXT, "num_layers": 2, "num_heads": 4,
        "attention_types": [[["global", "local"], 1]], "window_size": 4}, causal),
    "gptj": ("GPTJForCausalLM", {**GPT2, "rotary_dim": 4}, causal),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", GPT2, causal),
    "codegen": ("CodeGenForCausalLM", {**GPT2, "rotary_dim": 4}, causal),
    "opt": ("OPTForCausalLM", {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32}, padded),
    "bloom": ("BloomForCausalLM", {**TEXT, "n_layer": 2, "n_head": 4}, padded),
    "falcon": ("FalconForCausalLM", TEXT, causal),
    "falcon_alibi": ("FalconForCausalLM", {**TEXT, "alibi": True}, padded),
    "mpt": ("MptForCausalLM", {"vocab_size": 99, "d_model": 32, "n_heads": 4, "n_layers": 2,
        "max_seq_len": 64, "use_cache": False}, causal),
    "olmo": ("OlmoForCausalLM", DECODER, causal),
    "olmo2": ("Olmo2ForCausalLM", DECODER, causal),
    "olmoe": ("OlmoeForCausalLM", MOE, causal),
    "deepseek_v2": ("DeepseekV2ForCausalLM", {**DECODER, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "num_key_value_heads": 4, "head_dim": 4}, causal),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {**DECODER, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "n_group": 2, "topk_group": 1, "num_key_value_heads": 4, "head_dim": 4}, causal),
    "gpt_oss": ("GptOssForCausalLM", {**MOE, "sliding_window": 4}, causal),
    "granite": ("GraniteForCausalLM", {**DECODER, "embedding_multiplier": 3.0}, causal),
    "granite_moe": ("GraniteMoeForCausalLM", MOE, causal),
    "cohere": ("CohereForCausalLM", DECODER, causal),
    "cohere2": ("Cohere2ForCausalLM", {**DECODER, "sliding_window": 4}, causal),
    "stablelm": ("StableLmForCausalLM", DECODER, causal),
    "starcoder2": ("Starcoder2ForCausalLM", DECODER, causal),
    "nemotron": ("NemotronForCausalLM", DECODER, causal),
    "glm": ("GlmForCausalLM", DECODER, causal),
    "glm4": ("Glm4ForCausalLM", DECODER, causal),
    "smollm3": ("SmolLM3ForCausalLM", DECODER, causal),
    "exaone4": ("Exaone4ForCausalLM", {**DECODER, "sliding_window": 4}, causal),
    "helium": ("HeliumForCausalLM", DECODER, causal),
    "ernie4_5": ("Ernie4_5ForCausalLM", DECODER, causal),
    "hunyuan": ("HunYuanDenseV1ForCausalLM", DECODER, causal),
    "seed_oss": ("SeedOssForCausalLM", DECODER, causal),
    "llama4": ("Llama4ForCausalLM", {**MOE, "intermediate_size_mlp": 64, "moe_layers": [1]},
        causal),
    "jetmoe": ("JetMoeForCausalLM", {**MOE, "kv_channels": 8, "num_key_value_heads": 2}, causal),
    "mamba": ("MambaForCausalLM", {**TEXT, "state_size": 4}, causal),
    "mamba2": ("Mamba2ForCausalLM", {**TEXT, "state_size": 4, "num_heads": 8, "head_dim": 8,
        "n_groups": 2, "chunk_size": 4}, causal),
    "rwkv": ("RwkvForCausalLM", {**TEXT, "context_length": 64}, causal),
    "recurrent_gemma": ("RecurrentGemmaForCausalLM", {**DECODER, "lru_width": 32,
        "attention_window_size": 8, "num_hidden_layers": 3}, causal),
    "xglm": ("XGLMForCausalLM", {**TEXT, "d_model": 32, "num_layers": 2, "attention_heads": 4,
        "ffn_dim": 64}, causal),
    "biogpt": ("BioGptForCausalLM", TEXT, padded),
    "xlnet": ("XLNetLMHeadModel", {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4,
        "d_inner": 64}, padded),
    "ctrl": ("CTRLLMHeadModel", {**GPT2, "dff": 64}, causal),
    "openai_gpt": ("OpenAIGPTLMHeadModel", GPT2, causal),
    # encoders
    "distilbert": ("DistilBertForMaskedLM", {**TEXT, "dim": 32, "hidden_dim": 64, "n_layers": 2,
        "n_heads": 4}, masked),
    "roberta": ("RobertaForMaskedLM", TEXT, masked),
    "xlm_roberta": ("XLMRobertaForMaskedLM", TEXT, masked),
    "camembert_class": ("CamembertForSequenceClassification", {**TEXT, "num_labels": 3}, encoded),
    "albert": ("AlbertForMaskedLM", {**TEXT, "embedding_size": 16}, masked),
    "electra": ("ElectraForMaskedLM", {**TEXT, "embedding_size": 16}, masked),
    "deberta": ("DebertaForMaskedLM", {**TEXT, "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"]}, masked),
    "deberta_v2": ("DebertaV2ForMaskedLM", {**TEXT, "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}, masked),
    "mobilebert": ("MobileBertForMaskedLM", {**TEXT, "embedding_size": 16,
        "intra_bottleneck_size": 16, "num_feedforward_networks": 2}, masked),
    "squeezebert": ("SqueezeBertForMaskedLM", {**TEXT, "embedding_size": 32}, masked),
    "modernbert": ("ModernBertForMaskedLM", {**TEXT, "local_attention": 4}, masked),
    "mpnet": ("MPNetForMaskedLM", TEXT, masked),
    "fnet": ("FNetForMaskedLM", TEXT, causal),
    "yoso": ("YosoForMaskedLM", {**TEXT, "use_expectation": True}, masked),
    "convbert": ("ConvBertForMaskedLM", {**TEXT, "embedding_size": 32}, masked),
    "funnel": ("FunnelForMaskedLM", {"vocab_size": 99, "d_model": 32, "n_head": 4, "d_head": 8,
        "d_inner": 64, "block_sizes": [1, 1], "num_decoder_layers": 1}, masked),
    "longformer": ("LongformerForMaskedLM", {**TEXT, "attention_window": 4}, masked),
    "big_bird": ("BigBirdForMaskedLM", {**TEXT, "attention_type": "original_full"}, masked),
    # It draws the seeds of its dropout from the clock, so that no two runs are the same.
    "reformer": ("ReformerForMaskedLM", {**TEXT, "attention_head_size": 8, "feed_forward_size": 64,
        "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0,
        "attn_layers": ["local", "local"], "local_attn_chunk_length": 5, "is_decoder": False,
        "axial_pos_shape": [2, 5], "axial_pos_embds_dim": [16, 16]}, masked),
    "canine": ("CanineForSequenceClassification", {**TEXT, "num_hash_buckets": 32}, encoded),
    "layoutlm": ("LayoutLMForMaskedLM", TEXT, masked),
    "roformer": ("RoFormerForMaskedLM", {**TEXT, "embedding_size": 32}, masked),
    "esm": ("EsmForMaskedLM", {**TEXT, "mask_token_id": 3}, masked),
    "ibert": ("IBertForMaskedLM", TEXT, masked),
    "luke": ("LukeForMaskedLM", {**TEXT, "entity_vocab_size": 20}, masked),
    "xlm": ("XLMWithLMHeadModel", {**TEXT, "emb_dim": 32, "n_layers": 2, "n_heads": 4}, encoded),
    "flaubert": ("FlaubertWithLMHeadModel", {**TEXT, "emb_dim": 32, "n_layers": 2, "n_heads": 4},
        encoded),
    # encoder-decoders
    "mt5": ("MT5ForConditionalGeneration", T5, seq2seq),
    "umt5": ("UMT5ForConditionalGeneration", T5, seq2seq),
    "longt5": ("LongT5ForConditionalGeneration", {**T5, "local_radius": 3}, seq2seq),
    "switch": ("SwitchTransformersForConditionalGeneration", {**T5, "num_experts": 4,
        "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        seq2seq),
    "bart": ("BartForConditionalGeneration", SEQ2SEQ, seq2seq),
    "mbart": ("MBartForConditionalGeneration", SEQ2SEQ, seq2seq),
    "pegasus": ("PegasusForConditionalGeneration", SEQ2SEQ, seq2seq),
    "marian": ("MarianMTModel", SEQ2SEQ, seq2seq),
    "blenderbot": ("BlenderbotForConditionalGeneration", SEQ2SEQ, seq2seq),
    "m2m_100": ("M2M100ForConditionalGeneration", SEQ2SEQ, seq2seq),
    "led": ("LEDForConditionalGeneration", {**SEQ2SEQ, "attention_window": 4,
        "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}, seq2seq),
    "prophetnet": ("ProphetNetForConditionalGeneration", {"vocab_size": 99, "hidden_size": 32,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
        "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4}, seq2seq),
    "whisper": ("WhisperForConditionalGeneration", {**SEQ2SEQ, "num_mel_bins": 16,
        "max_source_positions": 20, "max_target_positions": 20}, transcribed),
    # speech
    "wav2vec2": ("Wav2Vec2Model", SPEECH, speech),
    "wav2vec2_ctc": ("Wav2Vec2ForCTC", SPEECH, speech),
    "hubert": ("HubertModel", SPEECH, speech),
    "wavlm": ("WavLMModel", SPEECH, speech),
    "unispeech": ("UniSpeechModel", SPEECH, speech),
    "data2vec_audio": ("Data2VecAudioModel", {**SPEECH, "conv_pos_kernel_size": 5,
        "num_conv_pos_embeddings": 2}, speech),
    "sew": ("SEWModel", {**SPEECH, "squeeze_factor": 2}, speech),
    # images
    "deit": ("DeiTForImageClassification", IMAGE, image),
    "beit": ("BeitForImageClassification", {**IMAGE, "drop_path_rate": 0.0}, image),
    "swin": ("SwinForImageClassification", {"image_size": 32, "num_labels": 5, "patch_size": 4,
        "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}, image),
    "swinv2": ("Swinv2ForImageClassification", {"image_size": 32, "num_labels": 5, "patch_size": 4,
        "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}, image),
    "convnext": ("ConvNextForImageClassification", {"hidden_sizes": [8, 16], "depths": [1, 1],
        "num_stages": 2, "num_labels": 5}, image64),
    "convnextv2": ("ConvNextV2ForImageClassification", {"hidden_sizes": [8, 16], "depths": [1, 1],
        "num_stages": 2, "num_labels": 5}, image64),
    "resnet": ("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16],
        "depths": [1, 1], "num_labels": 5}, image64),
    "regnet": ("RegNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16],
        "depths": [1, 1], "groups_width": 4, "num_labels": 5}, image64),
    "bit": ("BitForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16],
        "depths": [1, 1], "num_groups": 4, "num_labels": 5}, image64),
    "segformer": ("SegformerForImageClassification", {"num_encoder_blocks": 2, "depths": [1, 1],
        "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [7, 3], "strides": [4, 2],
        "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "num_labels": 5,
        "drop_path_rate": 0.0}, image64),
    "pvt": ("PvtForImageClassification", {"image_size": 64, "num_encoder_blocks": 2,
        "depths": [1, 1], "sequence_reduction_ratios": [2, 1], "hidden_sizes": [8, 16],
        "patch_sizes": [4, 2], "strides": [4, 2], "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2], "num_labels": 5}, image),
    "poolformer": ("PoolFormerForImageClassification", {"depths": [1, 1], "hidden_sizes": [8, 16],
        "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1],
        "num_labels": 5, "drop_path_rate": 0.0}, image64),
    "dinov2": ("Dinov2ForImageClassification", IMAGE, image),
    "dinov3": ("DINOv3ViTModel", IMAGE, pixels),
    "ijepa": ("IJepaForImageClassification", IMAGE, image),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25,
        "num_labels": 5, "image_size": 32}, image),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25,
        "num_labels": 5, "image_size": 32}, image),
    "mobilevit": ("MobileViTForImageClassification", {"image_size": 64,
        "hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 8, 12, 16, 20, 24, 32],
        "num_attention_heads": 2, "num_labels": 5}, image),
    "levit": ("LevitForImageClassification", {"image_size": 64, "hidden_sizes": [16, 16, 16],
        "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1], "key_dim": [8, 8, 8],
        "num_labels": 5}, image),
    "focalnet": ("FocalNetForImageClassification", {"image_size": 32, "embed_dim": 8,
        "depths": [1, 1], "hidden_sizes": [8, 16], "focal_levels": [2, 2], "focal_windows": [3, 3],
        "drop_path_rate": 0.0, "num_labels": 5}, image),
    "vit_mae": ("ViTMAEModel", {**IMAGE, "mask_ratio": 0.0}, pixels),
    "yolos": ("YolosModel", {**IMAGE, "image_size": [16, 16], "num_detection_tokens": 4}, pixels),
    "swiftformer": ("SwiftFormerForImageClassification", {"image_size": 64, "depths": [1, 1],
        "embed_dims": [8, 16], "downsamples": [True, True], "num_labels": 5,
        "drop_path_rate": 0.0}, image64),
    "perceiver": ("PerceiverModel", {"num_latents": 6, "d_latents": 16, "d_model": 32,
        "num_blocks": 1, "num_self_attends_per_block": 1, "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2}, lambda _: {"inputs": torch.randn(2, 10, 32)}),
    # images and text
    "clip": ("CLIPModel", TWO_TOWERS, contrastive),
    "siglip": ("SiglipModel", TWO_TOWERS, contrastive),
    "chinese_clip": ("ChineseCLIPModel", TWO_TOWERS, contrastive),
    "altclip": ("AltCLIPModel", TWO_TOWERS, contrastive),
    "blip": ("BlipModel", TWO_TOWERS, contrastive),
    "vilt": ("ViltModel", {**TEXT, **IMAGE}, lambda _: {
        "input_ids": ids(2, 6), "pixel_values": torch.randn(2, 3, 16, 16)}),
    "decision_transformer": ("DecisionTransformerModel", {"state_dim": 5, "act_dim": 3,
        "hidden_size": 32, "n_layer": 2, "n_head": 2, "max_ep_len": 64}, lambda _: {
        "states": torch.randn(2, 6, 5), "actions": torch.randn(2, 6, 3),
        "rewards": torch.randn(2, 6, 1), "returns_to_go": torch.randn(2, 6, 1),
        "timesteps": torch.arange(6).repeat(2, 1),
        "attention_mask": torch.ones(2, 6, dtype=torch.long)}),
    "time_series": ("TimeSeriesTransformerModel", {"prediction_length": 4, "context_length": 6,
        "lags_sequence": [1, 2], "num_time_features": 1, "d_model": 16, "encoder_layers": 1,
        "decoder_layers": 1, "use_cache": False}, lambda _: {
        "past_values": torch.randn(2, 8), "past_time_features": torch.randn(2, 8, 1),
        "past_observed_mask": torch.ones(2, 8), "future_values": torch.randn(2, 4),
        "future_time_features": torch.randn(2, 4, 1)}),
    "patchtst": ("PatchTSTForPrediction", {"num_input_channels": 2, "context_length": 16,
        "patch_length": 4, "patch_stride": 4, "d_model": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "ffn_dim": 32, "prediction_length": 4}, lambda _: {
        "past_values": torch.randn(2, 16, 2), "future_values": torch.randn(2, 4, 2)}),
}  # fmt: skip


def from_config(name: str, options: dict[str, Any], inputs: Inputs) -> Callable[[], Built]:
    """A factory of the transformers class ``name`` and its inputs."""

    def built() -> Built:
        kind = getattr(transformers, name)
        config = kind.config_class(**options)
        return (net := kind(config)), (), inputs(net)

    return built


def factories(table: dict[str, Row]) -> dict[str, Any]:
    """The rows of a table, as factories."""
    return {name: from_config(*row) for name, row in table.items()}
