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

_TEXT: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 1, "use_cache": False,
}  # fmt: skip
_DECODER = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "use_cache": False,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0, "pad_token_id": 0, "use_cache": False,
}  # fmt: skip
_IMAGE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4, "num_labels": 5,
}  # fmt: skip
_SPEECH: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "conv_dim": (16, 16), "conv_kernel": (5, 3), "conv_stride": (4, 2),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2,
    "layerdrop": 0.0, "apply_spec_augment": False, "mask_time_prob": 0.0,
    "ctc_loss_reduction": "mean", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
_MOE = {**_DECODER, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_GPT2 = {
    "vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "use_cache": False, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


def _ids(*shape: int, vocabulary: int = 99) -> Tensor:
    return torch.randint(2, vocabulary, shape)


def _padding(batch: int = 2, length: int = 10) -> Tensor:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, length - 3 :] = 0
    return mask


def _causal(_: nn.Module) -> dict[str, Any]:
    tokens = _ids(2, 10)
    return {"input_ids": tokens, "labels": tokens.clone()}


def _padded(_: nn.Module) -> dict[str, Any]:
    tokens = _ids(2, 10)
    return {"input_ids": tokens, "attention_mask": _padding(), "labels": tokens.clone()}


def _encoded(_: nn.Module) -> dict[str, Any]:
    return {"input_ids": _ids(2, 10), "attention_mask": _padding()}


def _masked(_: nn.Module) -> dict[str, Any]:
    labels = _ids(2, 10)
    labels[:, ::2] = -100
    return {"input_ids": _ids(2, 10), "attention_mask": _padding(), "labels": labels}


def _seq2seq(_: nn.Module) -> dict[str, Any]:
    return {"input_ids": _ids(2, 10), "attention_mask": _padding(), "labels": _ids(2, 7)}


def _image(net: nn.Module) -> dict[str, Any]:
    side = net.config.image_size if isinstance(getattr(net.config, "image_size", None), int) else 16
    return {"pixel_values": torch.randn(2, 3, side, side), "labels": torch.tensor([1, 3])}


def _pixels(net: nn.Module) -> dict[str, Any]:
    return {"pixel_values": _image(net)["pixel_values"]}


def _image64(_: nn.Module) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 64, 64), "labels": torch.tensor([1, 3])}


def _speech(_: nn.Module) -> dict[str, Any]:
    return {"input_values": torch.randn(2, 200)}


def _transcribed(_: nn.Module) -> dict[str, Any]:
    return {"input_features": torch.randn(2, 16, 40), "labels": _ids(2, 7)}


def _contrastive(net: nn.Module) -> dict[str, Any]:
    tokens = _ids(2, 10)
    tokens[:, -1] = 98
    return {"input_ids": tokens, "pixel_values": torch.randn(2, 3, 16, 16), "return_loss": True}


_TWO_TOWERS: dict[str, Any] = {
    "text_config": {**_TEXT, "projection_dim": 16, "eos_token_id": 98}, "projection_dim": 16,
    "vision_config": {**_IMAGE, "projection_dim": 16},
}  # fmt: skip

Inputs = Callable[[nn.Module], dict[str, Any]]

#: The models that the project's claims name.
MAIN: dict[str, tuple[str, dict[str, Any], Inputs]] = {
    "gpt2": ("GPT2LMHeadModel", _GPT2, _causal),
    "llama": ("LlamaForCausalLM", _DECODER, _causal),
    "bert": ("BertForMaskedLM", _TEXT, _masked),
    "t5": ("T5ForConditionalGeneration", _T5, _seq2seq),
    "vit": ("ViTForImageClassification", _IMAGE, _image),
    "mixtral": ("MixtralForCausalLM", _MOE, _causal),
}

OTHERS: dict[str, tuple[str, dict[str, Any], Inputs]] = {
    # decoders
    "llama_padded": ("LlamaForCausalLM", _DECODER, _padded),
    "llama_eager": ("LlamaForCausalLM", {**_DECODER, "attn_implementation": "eager"}, _padded),
    "gpt2_padded": ("GPT2LMHeadModel", _GPT2, _padded),
    "gpt2_eager": ("GPT2LMHeadModel", {**_GPT2, "attn_implementation": "eager"}, _padded),
    "qwen2": ("Qwen2ForCausalLM", _DECODER, _causal),
    "qwen3": ("Qwen3ForCausalLM", _DECODER, _causal),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**_MOE, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32}, _causal),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**_MOE, "moe_intermediate_size": 32}, _causal),
    "qwen3_next": ("Qwen3NextForCausalLM", {**_MOE, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"]}, _causal),
    "gemma": ("GemmaForCausalLM", _DECODER, _causal),
    "gemma2": ("Gemma2ForCausalLM", {**_DECODER, "sliding_window": 4}, _causal),
    "gemma3": ("Gemma3ForCausalLM", {**_DECODER, "sliding_window": 4}, _causal),
    "mistral": ("MistralForCausalLM", {**_DECODER, "sliding_window": 4}, _causal),
    "ministral": ("MinistralForCausalLM", {**_DECODER, "sliding_window": 4}, _causal),
    "phi": ("PhiForCausalLM", {**_TEXT, "num_key_value_heads": 4}, _causal),
    "phi3": ("Phi3ForCausalLM", {**_DECODER, "original_max_position_embeddings": 64}, _causal),
    "phimoe": ("PhimoeForCausalLM", _MOE, _causal),
    "gpt_neox": ("GPTNeoXForCausalLM", _TEXT, _causal),
    "gpt_neo": ("GPTNeoForCausalLM", {**_TEXT, "num_layers": 2, "num_heads": 4,
        "attention_types": [[["global", "local"], 1]], "window_size": 4}, _causal),
    "gptj": ("GPTJForCausalLM", {**_GPT2, "rotary_dim": 4}, _causal),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", _GPT2, _causal),
    "codegen": ("CodeGenForCausalLM", {**_GPT2, "rotary_dim": 4}, _causal),
    "opt": ("OPTForCausalLM", {**_TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32}, _padded),
    "bloom": ("BloomForCausalLM", {**_TEXT, "n_layer": 2, "n_head": 4}, _padded),
    "falcon": ("FalconForCausalLM", _TEXT, _causal),
    "falcon_alibi": ("FalconForCausalLM", {**_TEXT, "alibi": True}, _padded),
    "mpt": ("MptForCausalLM", {"vocab_size": 99, "d_model": 32, "n_heads": 4, "n_layers": 2,
        "max_seq_len": 64, "use_cache": False}, _causal),
    "olmo": ("OlmoForCausalLM", _DECODER, _causal),
    "olmo2": ("Olmo2ForCausalLM", _DECODER, _causal),
    "olmoe": ("OlmoeForCausalLM", _MOE, _causal),
    "deepseek_v2": ("DeepseekV2ForCausalLM", {**_DECODER, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "num_key_value_heads": 4, "head_dim": 4}, _causal),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {**_DECODER, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "n_group": 2, "topk_group": 1, "num_key_value_heads": 4, "head_dim": 4}, _causal),
    "gpt_oss": ("GptOssForCausalLM", {**_MOE, "sliding_window": 4}, _causal),
    "granite": ("GraniteForCausalLM", {**_DECODER, "embedding_multiplier": 3.0}, _causal),
    "granite_moe": ("GraniteMoeForCausalLM", _MOE, _causal),
    "cohere": ("CohereForCausalLM", _DECODER, _causal),
    "cohere2": ("Cohere2ForCausalLM", {**_DECODER, "sliding_window": 4}, _causal),
    "stablelm": ("StableLmForCausalLM", _DECODER, _causal),
    "starcoder2": ("Starcoder2ForCausalLM", _DECODER, _causal),
    "nemotron": ("NemotronForCausalLM", _DECODER, _causal),
    "glm": ("GlmForCausalLM", _DECODER, _causal),
    "glm4": ("Glm4ForCausalLM", _DECODER, _causal),
    "smollm3": ("SmolLM3ForCausalLM", _DECODER, _causal),
    "exaone4": ("Exaone4ForCausalLM", {**_DECODER, "sliding_window": 4}, _causal),
    "helium": ("HeliumForCausalLM", _DECODER, _causal),
    "ernie4_5": ("Ernie4_5ForCausalLM", _DECODER, _causal),
    "hunyuan": ("HunYuanDenseV1ForCausalLM", _DECODER, _causal),
    "seed_oss": ("SeedOssForCausalLM", _DECODER, _causal),
    "llama4": ("Llama4ForCausalLM", {**_MOE, "intermediate_size_mlp": 64, "moe_layers": [1]},
        _causal),
    "jetmoe": ("JetMoeForCausalLM", {**_MOE, "kv_channels": 8, "num_key_value_heads": 2}, _causal),
    "mamba": ("MambaForCausalLM", {**_TEXT, "state_size": 4}, _causal),
    "mamba2": ("Mamba2ForCausalLM", {**_TEXT, "state_size": 4, "num_heads": 8, "head_dim": 8,
        "n_groups": 2, "chunk_size": 4}, _causal),
    "rwkv": ("RwkvForCausalLM", {**_TEXT, "context_length": 64}, _causal),
    "recurrent_gemma": ("RecurrentGemmaForCausalLM", {**_DECODER, "lru_width": 32,
        "attention_window_size": 8, "num_hidden_layers": 3}, _causal),
    "xglm": ("XGLMForCausalLM", {**_TEXT, "d_model": 32, "num_layers": 2, "attention_heads": 4,
        "ffn_dim": 64}, _causal),
    "biogpt": ("BioGptForCausalLM", _TEXT, _padded),
    "xlnet": ("XLNetLMHeadModel", {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4,
        "d_inner": 64}, _padded),
    "ctrl": ("CTRLLMHeadModel", {**_GPT2, "dff": 64}, _causal),
    "openai_gpt": ("OpenAIGPTLMHeadModel", _GPT2, _causal),
    # encoders
    "distilbert": ("DistilBertForMaskedLM", {**_TEXT, "dim": 32, "hidden_dim": 64, "n_layers": 2,
        "n_heads": 4}, _masked),
    "roberta": ("RobertaForMaskedLM", _TEXT, _masked),
    "xlm_roberta": ("XLMRobertaForMaskedLM", _TEXT, _masked),
    "camembert_class": ("CamembertForSequenceClassification", {**_TEXT, "num_labels": 3}, _encoded),
    "albert": ("AlbertForMaskedLM", {**_TEXT, "embedding_size": 16}, _masked),
    "electra": ("ElectraForMaskedLM", {**_TEXT, "embedding_size": 16}, _masked),
    "deberta": ("DebertaForMaskedLM", {**_TEXT, "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"]}, _masked),
    "deberta_v2": ("DebertaV2ForMaskedLM", {**_TEXT, "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}, _masked),
    "mobilebert": ("MobileBertForMaskedLM", {**_TEXT, "embedding_size": 16,
        "intra_bottleneck_size": 16, "num_feedforward_networks": 2}, _masked),
    "squeezebert": ("SqueezeBertForMaskedLM", {**_TEXT, "embedding_size": 32}, _masked),
    "modernbert": ("ModernBertForMaskedLM", {**_TEXT, "local_attention": 4}, _masked),
    "mpnet": ("MPNetForMaskedLM", _TEXT, _masked),
    "fnet": ("FNetForMaskedLM", _TEXT, _causal),
    "yoso": ("YosoForMaskedLM", {**_TEXT, "use_expectation": True}, _masked),
    "convbert": ("ConvBertForMaskedLM", {**_TEXT, "embedding_size": 32}, _masked),
    "funnel": ("FunnelForMaskedLM", {"vocab_size": 99, "d_model": 32, "n_head": 4, "d_head": 8,
        "d_inner": 64, "block_sizes": [1, 1], "num_decoder_layers": 1}, _masked),
    "longformer": ("LongformerForMaskedLM", {**_TEXT, "attention_window": 4}, _masked),
    "big_bird": ("BigBirdForMaskedLM", {**_TEXT, "attention_type": "original_full"}, _masked),
    # It draws the seeds of its dropout from the clock, so that no two runs are the same.
    "reformer": ("ReformerForMaskedLM", {**_TEXT, "attention_head_size": 8, "feed_forward_size": 64,
        "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0,
        "attn_layers": ["local", "local"], "local_attn_chunk_length": 5, "is_decoder": False,
        "axial_pos_shape": [2, 5], "axial_pos_embds_dim": [16, 16]}, _masked),
    "canine": ("CanineForSequenceClassification", {**_TEXT, "num_hash_buckets": 32}, _encoded),
    "layoutlm": ("LayoutLMForMaskedLM", _TEXT, _masked),
    "roformer": ("RoFormerForMaskedLM", {**_TEXT, "embedding_size": 32}, _masked),
    "esm": ("EsmForMaskedLM", {**_TEXT, "mask_token_id": 3}, _masked),
    "ibert": ("IBertForMaskedLM", _TEXT, _masked),
    "luke": ("LukeForMaskedLM", {**_TEXT, "entity_vocab_size": 20}, _masked),
    "xlm": ("XLMWithLMHeadModel", {**_TEXT, "emb_dim": 32, "n_layers": 2, "n_heads": 4}, _encoded),
    "flaubert": ("FlaubertWithLMHeadModel", {**_TEXT, "emb_dim": 32, "n_layers": 2, "n_heads": 4},
        _encoded),
    # encoder-decoders
    "mt5": ("MT5ForConditionalGeneration", _T5, _seq2seq),
    "umt5": ("UMT5ForConditionalGeneration", _T5, _seq2seq),
    "longt5": ("LongT5ForConditionalGeneration", {**_T5, "local_radius": 3}, _seq2seq),
    "switch": ("SwitchTransformersForConditionalGeneration", {**_T5, "num_experts": 4,
        "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        _seq2seq),
    "bart": ("BartForConditionalGeneration", _SEQ2SEQ, _seq2seq),
    "mbart": ("MBartForConditionalGeneration", _SEQ2SEQ, _seq2seq),
    "pegasus": ("PegasusForConditionalGeneration", _SEQ2SEQ, _seq2seq),
    "marian": ("MarianMTModel", _SEQ2SEQ, _seq2seq),
    "blenderbot": ("BlenderbotForConditionalGeneration", _SEQ2SEQ, _seq2seq),
    "m2m_100": ("M2M100ForConditionalGeneration", _SEQ2SEQ, _seq2seq),
    "led": ("LEDForConditionalGeneration", {**_SEQ2SEQ, "attention_window": 4,
        "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}, _seq2seq),
    "prophetnet": ("ProphetNetForConditionalGeneration", {"vocab_size": 99, "hidden_size": 32,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
        "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4}, _seq2seq),
    "whisper": ("WhisperForConditionalGeneration", {**_SEQ2SEQ, "num_mel_bins": 16,
        "max_source_positions": 20, "max_target_positions": 20}, _transcribed),
    # speech
    "wav2vec2": ("Wav2Vec2Model", _SPEECH, _speech),
    "wav2vec2_ctc": ("Wav2Vec2ForCTC", _SPEECH, _speech),
    "hubert": ("HubertModel", _SPEECH, _speech),
    "wavlm": ("WavLMModel", _SPEECH, _speech),
    "unispeech": ("UniSpeechModel", _SPEECH, _speech),
    "data2vec_audio": ("Data2VecAudioModel", {**_SPEECH, "conv_pos_kernel_size": 5,
        "num_conv_pos_embeddings": 2}, _speech),
    "sew": ("SEWModel", {**_SPEECH, "squeeze_factor": 2}, _speech),
    # images
    "deit": ("DeiTForImageClassification", _IMAGE, _image),
    "beit": ("BeitForImageClassification", {**_IMAGE, "drop_path_rate": 0.0}, _image),
    "swin": ("SwinForImageClassification", {"image_size": 32, "num_labels": 5, "patch_size": 4,
        "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}, _image),
    "swinv2": ("Swinv2ForImageClassification", {"image_size": 32, "num_labels": 5, "patch_size": 4,
        "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}, _image),
    "convnext": ("ConvNextForImageClassification", {"hidden_sizes": [8, 16], "depths": [1, 1],
        "num_stages": 2, "num_labels": 5}, _image64),
    "convnextv2": ("ConvNextV2ForImageClassification", {"hidden_sizes": [8, 16], "depths": [1, 1],
        "num_stages": 2, "num_labels": 5}, _image64),
    "resnet": ("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16],
        "depths": [1, 1], "num_labels": 5}, _image64),
    "regnet": ("RegNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16],
        "depths": [1, 1], "groups_width": 4, "num_labels": 5}, _image64),
    "bit": ("BitForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16],
        "depths": [1, 1], "num_groups": 4, "num_labels": 5}, _image64),
    "segformer": ("SegformerForImageClassification", {"num_encoder_blocks": 2, "depths": [1, 1],
        "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [7, 3], "strides": [4, 2],
        "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "num_labels": 5,
        "drop_path_rate": 0.0}, _image64),
    "pvt": ("PvtForImageClassification", {"image_size": 64, "num_encoder_blocks": 2,
        "depths": [1, 1], "sequence_reduction_ratios": [2, 1], "hidden_sizes": [8, 16],
        "patch_sizes": [4, 2], "strides": [4, 2], "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2], "num_labels": 5}, _image),
    "poolformer": ("PoolFormerForImageClassification", {"depths": [1, 1], "hidden_sizes": [8, 16],
        "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1],
        "num_labels": 5, "drop_path_rate": 0.0}, _image64),
    "dinov2": ("Dinov2ForImageClassification", _IMAGE, _image),
    "dinov3": ("DINOv3ViTModel", _IMAGE, _pixels),
    "ijepa": ("IJepaForImageClassification", _IMAGE, _image),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25,
        "num_labels": 5, "image_size": 32}, _image),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25,
        "num_labels": 5, "image_size": 32}, _image),
    "mobilevit": ("MobileViTForImageClassification", {"image_size": 64,
        "hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 8, 12, 16, 20, 24, 32],
        "num_attention_heads": 2, "num_labels": 5}, _image),
    "levit": ("LevitForImageClassification", {"image_size": 64, "hidden_sizes": [16, 16, 16],
        "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1], "key_dim": [8, 8, 8],
        "num_labels": 5}, _image),
    "focalnet": ("FocalNetForImageClassification", {"image_size": 32, "embed_dim": 8,
        "depths": [1, 1], "hidden_sizes": [8, 16], "focal_levels": [2, 2], "focal_windows": [3, 3],
        "drop_path_rate": 0.0, "num_labels": 5}, _image),
    "vit_mae": ("ViTMAEModel", {**_IMAGE, "mask_ratio": 0.0}, _pixels),
    "yolos": ("YolosModel", {**_IMAGE, "image_size": [16, 16], "num_detection_tokens": 4}, _pixels),
    "swiftformer": ("SwiftFormerForImageClassification", {"image_size": 64, "depths": [1, 1],
        "embed_dims": [8, 16], "downsamples": [True, True], "num_labels": 5,
        "drop_path_rate": 0.0}, _image64),
    "perceiver": ("PerceiverModel", {"num_latents": 6, "d_latents": 16, "d_model": 32,
        "num_blocks": 1, "num_self_attends_per_block": 1, "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2}, lambda _: {"inputs": torch.randn(2, 10, 32)}),
    # images and text
    "clip": ("CLIPModel", _TWO_TOWERS, _contrastive),
    "siglip": ("SiglipModel", _TWO_TOWERS, _contrastive),
    "chinese_clip": ("ChineseCLIPModel", _TWO_TOWERS, _contrastive),
    "altclip": ("AltCLIPModel", _TWO_TOWERS, _contrastive),
    "blip": ("BlipModel", _TWO_TOWERS, _contrastive),
    "vilt": ("ViltModel", {**_TEXT, **_IMAGE}, lambda _: {
        "input_ids": _ids(2, 6), "pixel_values": torch.randn(2, 3, 16, 16)}),
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


def factories(table: dict[str, tuple[str, dict[str, Any], Inputs]]) -> dict[str, Any]:
    """The rows of a table, as factories."""
    return {name: from_config(*row) for name, row in table.items()}
