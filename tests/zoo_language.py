"""Further tiny transformers models, for the survey alone: of text.

State spaces and other mixtures along a sequence, experts, encoders, encoder-decoders. See
``zoo_transformers`` for what a row is.
"""

from __future__ import annotations

import torch
from zoo_transformers import (
    DECODER,
    GPT2,
    MOE,
    SEQ2SEQ,
    TEXT,
    Row,
    causal,
    ids,
    masked,
    padding,
    seq2seq,
)

LANGUAGE: dict[str, Row] = {
    "falcon_mamba": ("FalconMambaForCausalLM", {**TEXT, "state_size": 4}, causal),
    "jamba": ("JambaForCausalLM", {**MOE, "attn_layer_offset": 1, "attn_layer_period": 2,
        "expert_layer_offset": 1, "expert_layer_period": 2, "mamba_d_state": 4, "mamba_dt_rank": 4,
        "use_mamba_kernels": False}, causal),
    "xlstm": ("xLSTMForCausalLM", MOE, causal),
    "lfm2": ("Lfm2ForCausalLM", {**DECODER, "layer_types": ["conv", "full_attention"]}, causal),
    "minimax": ("MiniMaxForCausalLM", {**MOE, "layer_types": ["linear_attention",
        "full_attention"], "block_size": 4}, causal),
    "bamba": ("BambaForCausalLM", {**DECODER, "mamba_n_heads": 8, "mamba_d_head": 8,
        "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 4, "attn_layer_indices": [1]},
        causal),
    "granitemoehybrid": ("GraniteMoeHybridForCausalLM", {**MOE, "mamba_n_heads": 8, "mamba_d_head":
        8, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 4, "layer_types": ["mamba",
        "attention"], "shared_intermediate_size": 32}, causal),
    "dots1": ("Dots1ForCausalLM", {**MOE, "n_routed_experts": 4, "moe_intermediate_size": 16,
        "n_group": 1, "topk_group": 1, "n_shared_experts": 1}, causal),
    "apertus": ("ApertusForCausalLM", DECODER, causal),
    "bitnet": ("BitNetForCausalLM", DECODER, causal),
    "diffllama": ("DiffLlamaForCausalLM", DECODER, causal),
    "doge": ("DogeForCausalLM", DECODER, causal),
    "cohere2_moe": ("Cohere2MoeForCausalLM", {**MOE, "sliding_window": 4}, causal),
    "plbart": ("PLBartForConditionalGeneration", SEQ2SEQ, seq2seq),
    "t5gemma": ("T5GemmaForConditionalGeneration", {"encoder": {**DECODER, "sliding_window": 4},
        "decoder": {**DECODER, "sliding_window": 4, "cross_attention_hidden_size": 32},
        "vocab_size": 99}, lambda _: {"input_ids": ids(2, 10), "attention_mask": padding(),
        "decoder_input_ids": ids(2, 7), "labels": ids(2, 7)}),
    "bigbird_pegasus": ("BigBirdPegasusForConditionalGeneration", {**SEQ2SEQ, "attention_type":
        "original_full"}, seq2seq),
    "pegasus_x": ("PegasusXForConditionalGeneration", {**SEQ2SEQ, "num_global_tokens": 2,
        "block_size": 4}, lambda _: {"input_ids": ids(2, 8), "attention_mask": padding(2, 8),
        "labels": ids(2, 7)}),
    "nllb_moe": ("NllbMoeForConditionalGeneration", {**SEQ2SEQ, "num_experts": 4,
        "encoder_sparse_step": 2, "decoder_sparse_step": 2}, seq2seq),
    "fsmt": ("FSMTForConditionalGeneration", {**SEQ2SEQ, "src_vocab_size": 99, "tgt_vocab_size":
        99, "langs": ["en", "de"]}, lambda _: {"input_ids": ids(2, 10), "decoder_input_ids": ids(2,
        7), "labels": ids(2, 7)}),
    "imagegpt": ("ImageGPTForCausalImageModeling", {**GPT2}, lambda _: {"input_ids": (t:=ids(2, 10,
        vocabulary=98)), "labels": t.clone()}),
    "tapas": ("TapasForMaskedLM", {**TEXT, "type_vocab_sizes": [3, 8, 8, 2, 8, 8, 4]}, lambda _:
        {"input_ids": ids(2, 10), "token_type_ids": torch.zeros(2, 10, 7, dtype=torch.long),
        "labels": ids(2, 10)}),
    "nystromformer": ("NystromformerForMaskedLM", {**TEXT, "num_landmarks": 2,
        "segment_means_seq_len": 10, "conv_kernel_size": 3}, lambda _: {"input_ids": ids(2, 10),
        "labels": ids(2, 10)}),
    "mra": ("MraForMaskedLM", TEXT, masked),
    "rembert": ("RemBertForMaskedLM", {**TEXT, "input_embedding_size": 16, "output_embedding_size":
        32}, masked),
    "megatron_bert": ("MegatronBertForMaskedLM", TEXT, masked),
    "nomic_bert": ("NomicBertForMaskedLM", TEXT, masked),
    "eurobert": ("EuroBertForMaskedLM", DECODER, masked),
}  # fmt: skip
