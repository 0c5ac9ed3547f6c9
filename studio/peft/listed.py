"""Every public name of PEFT and the module path under which it is found there, so that each can be imported here too.

What stands behind a name is found by :mod:`studio.peft.paths`; this is the list alone.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LISTED"]

# one entry per package; ".word" begins what its module of that name has, and "peft" is the package itself
_ROWS: Final = """
peft AdaLoraModel AdamssModel AdaptionPromptModel BOFTModel BeftModel C3AModel CPTEmbedding CartridgeEncoder
    DeftModel DeloraModel FourierFTModel FrodModel GloraModel GraloraModel HRAModel HiraModel IA3Model
    LNTuningModel LilyModel LoHaModel LoKrModel MissModel OFTModel OSFModel PEFT_TYPE_TO_MIXED_MODEL_MAPPING
    PeanutModel PolyModel PrefixEncoder PromptEmbedding PromptEncoder PsoftModel PveraModel RandLoraModel
    RoadModel ShadowModel ShiraModel SupertuningModel TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING
    TinyLoraModel TrainableTokensModel UniLoraModel VBLoRAModel VeraModel WaveFTModel XLoraModel
    bloom_model_postprocess_past_key_value compose_cartridge_adapters convert_to_lora create_arrow_model
    find_kappa_target_modules get_eva_state_dict initialize_kv_prefix_from_past_key_values
    initialize_kv_prefix_from_text initialize_lora_eva_weights preprocess_loraga
    prompt_embeddings_from_past_key_values replace_lora_weights_loftq save_as_lora shift_tokens_right
auto AutoPeftModel AutoPeftModelForCausalLM AutoPeftModelForFeatureExtraction AutoPeftModelForQuestionAnswering
    AutoPeftModelForSeq2SeqLM AutoPeftModelForSequenceClassification AutoPeftModelForTokenClassification
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING TOKENIZER_CONFIG_NAME check_import_allowlist get_default_import_allowlist
config CONFIG_NAME MIN_EXPECTED_CONFIG_KEYS PeftConfig PeftConfigMixin PromptLearningConfig
functional cast_adapter_dtype delete_adapter get_peft_model_state_dict inject_adapter_in_model set_adapter
    set_peft_model_state_dict set_requires_grad
helpers DoraCaching KappaTuneSelector MontecloraTrainerMixin check_if_peft_model disable_input_dtype_casting
    find_kappa_target_modules rescale_adapter_scale update_forward_signature update_generate_signature
    update_signature
import_utils is_aqlm_available is_bnb_4bit_available is_bnb_available is_diffusers_available is_eetq_available
    is_gptqmodel_available is_hqq_available is_inc_available is_optimum_available is_te_available
    is_te_pytorch_available is_torch_tpu_available is_torchao_available is_torchao_ge_v0_18_0 is_xpu_available
mapping PEFT_TYPE_TO_CONFIG_MAPPING PEFT_TYPE_TO_MIXED_MODEL_MAPPING PEFT_TYPE_TO_PREFIX_MAPPING
    PEFT_TYPE_TO_TUNER_MAPPING get_peft_config inject_adapter_in_model
mapping_func MODEL_TYPE_TO_PEFT_MODEL_MAPPING PEFT_TYPE_TO_CONFIG_MAPPING PEFT_TYPE_TO_PREFIX_MAPPING
    get_peft_model
mixed_model DUMMY_MODEL_CONFIG PeftMixedModel
optimizers create_lorafa_optimizer create_loraplus_optimizer create_riemannian_optimizer .lorafa LoraFAOptimizer
    create_lorafa_optimizer .loraplus ALL_LAYERNORM_LAYERS create_loraplus_optimizer .riemannian
    create_riemannian_optimizer
peft_model DUMMY_MODEL_CONFIG PEFT_TYPE_TO_CONFIG_MAPPING PEFT_TYPE_TO_PREFIX_MAPPING PEFT_TYPE_TO_TUNER_MAPPING
    PeftModel PeftModelForCausalLM PeftModelForFeatureExtraction PeftModelForQuestionAnswering
    PeftModelForSeq2SeqLM PeftModelForSequenceClassification PeftModelForTokenClassification
    SAFETENSORS_WEIGHTS_NAME TunerLayerStatus TunerModelStatus WEIGHTS_NAME get_layer_status get_model_status
tuners._buffer_dict BufferDict
tuners.adalora .bnb .config AdaLoraConfig .gptq SVDQuantLinear .layer AdaLoraLayer RankAllocator SVDConv2d
    SVDLinear .model AdaLoraModel
tuners.adamss .asa_callback AdamssAsaCallback .config AdamssConfig .layer AdamssLayer Linear .model AdamssModel
    .utils clustering_Z get_trainable_subspaces seg_locations slice_pca
tuners.adaption_prompt .config AdaptionPromptConfig ModelTypeConfig TRANSFORMERS_MODEL_CONFIG prepare_config
    .layer AdaptedAttention AdaptedAttentionGPT TRANSFORMERS_MODEL_CONFIG .model AdaptionPromptModel .utils
    gpt2_compute_query_states is_adaption_prompt_trainable llama_apply_rotary_pos_emb llama_compute_query_states
    llama_rotate_half
tuners.beft .config BeftConfig .layer BeftLayer Linear .model BeftModel
tuners.boft .config BOFTConfig .fbd .layer BOFTLayer Conv2d Linear MultiplicativeDropoutLayer .model BOFTModel
tuners.c3a .config C3AConfig .layer C3ALayer C3ALinear .model C3AModel .utils BlockCircularConvolution
    get_circulant_fast
tuners.cartridge .config CartridgeConfig .model CartridgeEncoder .utils SAFETENSORS_WEIGHTS_NAME WEIGHTS_NAME
    compose_cartridge_adapters initialize_kv_prefix_from_past_key_values initialize_kv_prefix_from_text
    prompt_embeddings_from_past_key_values
tuners.cpt .config CPTConfig .model CPTEmbedding
tuners.deft .config DeftConfig .layer DeftLayer DeftLinear .model DeftModel
tuners.delora .config DeloraConfig .layer DeloraLayer DeloraLinear .model DeloraModel
tuners.fourierft .config FourierFTConfig .layer FourierFTLayer FourierFTLinear .model FourierFTModel
tuners.frod .config FrodConfig .layer FrodLayer Linear .model FrodModel
tuners.glora .config GloraConfig .layer GloraEmptyPath GloraLayer GloraLinear GloraLoraPath GloraPath
    GloraScalarPath GloraVectorPath .model GloraModel
tuners.gralora .config GraloraConfig .layer GraloraLayer Linear .model GraloraModel
tuners.hira .config HiraConfig .layer Conv1d Conv2d Conv3d Embedding HiraLayer Linear dispatch_default .model
    HiraModel
tuners.hra .config HRAConfig .layer HRAConv2d HRALayer HRALinear .model HRAModel
tuners.ia3 .bnb .config IA3Config .layer Conv2d Conv3d IA3Layer Linear .model IA3Model
tuners.lily .config LilyConfig .layer LilyLayer Linear .model LilyModel
tuners.ln_tuning .config LNTuningConfig .layer LNTuningLayer .model LNTuningModel
tuners.loha .config LoHaConfig .layer Conv1d Conv2d HadaWeight HadaWeightCP Linear LoHaLayer make_weight
    make_weight_cp .model LoHaModel
tuners.lokr .config LoKrConfig .layer Conv1d Conv2d Linear LoKrLayer factorization make_kron make_weight_cp
    .model LoKrModel
tuners.lora .aqlm AqlmLoraLinear dispatch_aqlm .arrow ArrowLoraLinearLayer GKS_ADAPTER_PREFIX
    TASK_ADAPTER_PREFIX check_loaded_lora_compatibility_arrow create_arrow_model
    ensure_adapters_target_linear_layers_only .awq AwqLoraLinear dispatch_awq .config ArrowConfig BdLoraConfig
    CordaConfig EvaConfig KasaConfig LoftQConfig LoraConfig LoraGAConfig LoraRuntimeConfig MontecloraConfig
    VeloraConfig .conversion SAFETENSORS_WEIGHTS_NAME convert_to_lora save_as_lora .corda preprocess_corda .dora
    DoraConv1dLayer DoraConv2dLayer DoraConv3dLayer DoraEmbeddingLayer DoraLinearLayer ENABLE_DORA_CACHING
    cache_decorator .eetq dispatch_eetq .eva HashHook MIN_TARGET_MODULES_FOR_OPTIMIZATION SVDHook
    UNSUPPORTED_LORA_MODULES find_equal_values forward_fn_dict get_device_with_meta_params get_eva_state_dict
    initialize_lora_eva_weights move_inputs_to_device prepare_layer_inputs_fn_language_modeling
    prepare_model_inputs_fn_language_modeling .gptq GPTQLoraLinear dispatch_gptq .hqq dispatch_hqq .inc
    dispatch_inc .intruders reduce_intruder_dimension .layer ALLOWED_COMPUTE_DTYPES Conv1d Conv2d Conv3d
    Embedding Linear LoraEmbeddingATPHolder LoraLayer LoraVariant MultiheadAttention ParamWrapper UPCAST_DTYPES
    VARIANT_KWARG_KEYS dispatch_default .loraga estimate_gradients get_model_device get_target_modules
    preprocess_loraga .model LoraModel add_lora_tp_hooks_dtensor get_tp_plan_and_mesh .monteclora
    BufferedMontecloraSampler MontecloraSampler .te TeLinear dispatch_transformer_engine .torchao
    TorchaoLoraLinear dispatch_torchao .tp_layer LoraParallelLinear dispatch_megatron
    get_default_module_allowlist .variants ALoraLinearVariant ArrowLinearVariant BdLoraLinearVariant
    BlockDiagonalLinear DoraConv1dVariant DoraConv2dVariant DoraConv3dVariant DoraEmbeddingVariant
    DoraLinearVariant KasaLinearVariant MiCAEmbeddingVariant MiCALinearVariant MontecloraLinearVariant
    QALoraLinearVariant VeloraLinearVariant calculate_alora_offsets get_alora_offsets_for_forward
    get_alora_offsets_for_generate is_alora_relevant_in_batch .velora VeloraFunction
tuners.lycoris_utils LycorisConfig LycorisLayer LycorisTuner
tuners.miss .config MissConfig .layer MissLayer MissLinear .model MissModel
tuners.mixed .model COMPATIBLE_TUNER_TYPES MixedModel PREFIXES
tuners.multitask_prompt_tuning .config MultitaskPromptTuningConfig MultitaskPromptTuningInit .model
    MultitaskPromptEmbedding
tuners.oft .config OFTConfig .layer Conv2d Embedding Linear MultiplicativeDropoutLayer OFTLayer
    OFTRotationModule .model OFTModel
tuners.osf .config OSFConfig .layer Linear OSFLayer dispatch_default .model OSFModel .utils
    decompose_weight_matrix project_gradient_to_orthogonal_space
tuners.p_tuning .config PromptEncoderConfig PromptEncoderReparameterizationType .model PromptEncoder
tuners.peanut .config PeanutConfig .layer Linear PeanutLayer .model PeanutModel
tuners.poly .config PolyConfig .layer Linear PolyLayer .model PolyModel .router EPS PolyRouter Router get_router
tuners.prefix_tuning .config PrefixTuningConfig .model PrefixEncoder
tuners.prompt_tuning .config PromptTuningConfig PromptTuningInit .model PromptEmbedding
tuners.psoft .config PsoftConfig .layer Linear OrthLayer PsoftLayer dispatch_default .model PsoftModel
tuners.pvera .config PveraConfig .layer Linear PveraLayer .model PveraModel
tuners.randlora .config RandLoraConfig .layer Linear RandLoraLayer UniqueBaseGrad .model RandLoraModel
tuners.road .config RoadConfig .layer Linear RoadLayer dispatch_default .model RoadModel
tuners.shadow .config ShadowConfig .diffusion_models DetachedFluxShadowModel DiffusionShadowBackend
    Flux2ShadowBackend freeze_flux_stem_embeddings get_diffusion_shadow_backend validate_pretrained_flux_shadow
    .layers DetachedShadowModel ShadowCache ShadowCarrier ShadowLayer .model ShadowModel
tuners.shira .config ShiraConfig .layer Linear ShiraLayer .mask_functions random_mask .model ShiraModel
tuners.supertuning .config SupertuningConfig .layer Linear SupertuningLayer .model SupertuningModel
tuners.tinylora .config TinyLoraConfig .layer Embedding Linear TinyLoraLayer .model TinyLoraModel
tuners.trainable_tokens .config TrainableTokensConfig .layer TrainableTokensLayer .model TrainableTokensModel
tuners.tuners_utils BasePromptEncoder BaseTuner BaseTunerLayer DUMMY_MODEL_CONFIG DUMMY_TARGET_MODULES
    EMBEDDING_LAYER_NAMES INCLUDE_LINEAR_LAYERS_SHORTHAND MIN_TARGET_MODULES_FOR_OPTIMIZATION
    PEFT_TYPE_TO_PREFIX_MAPPING SEQ_CLS_HEAD_NAMES UPCAST_DTYPES _filter_state_dict_by_key_prefixes
    _find_minimal_target_modules _get_tuner_state_dict_key_prefixes _maybe_include_all_linear_layers
    cast_adapter_dtype check_adapters_to_merge check_target_module_exists clone_module delete_adapter
    find_parameter_name_by_module get_device_map inspect_matched_modules onload_layer replicate_layers
    set_adapter set_requires_grad
tuners.unilora .config UniLoraConfig .layer Linear UniLoraLayer .model UniLoraModel
tuners.vblora .config VBLoRAConfig .layer Linear VBLoRALayer .model VBLoRAModel
tuners.vera .config VeraConfig .layer Linear VeraLayer .model VeraModel
tuners.waveft .config WAVELET_REDUCTIONS WaveFTConfig .constants WAVELET_REDUCTIONS .layer WAVELET_REDUCTIONS
    WaveFTLayer WaveFTLinear .model WaveFTModel .wavelet Wavelet wavelist .waverec2d Wavelet
    WaveletDetailTuple2d WaveletTensorTuple waverec2d
tuners.xlora .classifier TemperatureScaledSoftmax XLoraClassifier .config XLoraConfig .layer XLoraConv2dLayer
    XLoraEmbeddingLayer XLoraLayer XLoraLinearLayer .model DUMMY_TARGET_MODULES XLoraModel
    convert_layers_to_xlora
utils .constants ALLOWED_COMPUTE_DTYPES CONFIG_NAME DUMMY_MODEL_CONFIG DUMMY_TARGET_MODULES
    EMBEDDING_LAYER_NAMES INCLUDE_LINEAR_LAYERS_SHORTHAND MIN_TARGET_MODULES_FOR_OPTIMIZATION
    SAFETENSORS_WEIGHTS_NAME SEQ_CLS_HEAD_NAMES TOKENIZER_CONFIG_NAME UPCAST_DTYPES WEIGHTS_NAME
    bloom_model_postprocess_past_key_value starcoder_model_postprocess_past_key_value .error
    NoMatchingPeftModuleError PeftError .hotswap CONFIG_KEYS_TO_CHECK PEFT_TYPE_TO_CONFIG_MAPPING
    PEFT_TYPE_TO_PREFIX_MAPPING check_hotswap_configs_compatible hotswap_adapter hotswap_adapter_from_state_dict
    prepare_model_for_compiled_hotswap .incremental_pca IncrementalPCA .integrations TpInfo
    check_deepspeed_zero3_enabled dequantize_bnb_weight dequantize_module_weight dtensor_from_local_like
    gather_params_ctx get_bnb_param_type get_layer_device_map init_empty_weights map_cache_to_layer_device_map
    skip_init_on_device .loftq_utils loftq_init replace_lora_weights_loftq .merge_utils
    calculate_majority_sign_mask dare_linear dare_ties disjoint_merge magnitude_based_pruning magnitude_prune
    prune random_pruning reshape_weight_task_tensors task_arithmetic ties .other AuxiliaryTrainingWrapper
    CONFIG_NAME EMBEDDING_LAYER_NAMES INCLUDE_LINEAR_LAYERS_SHORTHAND ModulesToSaveWrapper
    SAFETENSORS_WEIGHTS_NAME TrainableTokensWrapper WEIGHTS_NAME _get_module_names_tied_with_embedding
    _get_no_split_modules bloom_model_postprocess_past_key_value cast_mixed_precision_params
    check_file_exists_on_hf_hub create_attention_mask fsdp_auto_wrap_policy get_gptqmodel_quant_linear
    get_pattern_key get_quantization_config id_tensor_storage infer_device is_gptqmodel_awq_layer
    is_gptqmodel_quant_linear match_target_against_key prepare_model_for_kbit_training
    set_additional_trainable_modules shift_tokens_right starcoder_model_postprocess_past_key_value str_to_bool
    transpose .peft_types PeftType TaskType .quantization_utils Bnb4bitBackend Bnb8bitBackend
    ForwardOnlyQuantizationBackend HqqBackend QuantizationBackend TorchaoBackend get_quantization_kwargs
    quantization_extra_repr resolve_quantization_backend .save_and_load EMBEDDING_LAYER_NAMES
    INCLUDE_LINEAR_LAYERS_SHORTHAND PEFT_TYPE_TO_TUNER_MAPPING SAFETENSORS_WEIGHTS_NAME WEIGHTS_NAME
    get_base_model_state_dict get_embedding_layer_name get_peft_model_state_dict has_valid_embedding_base_layer
    load_peft_weights set_base_model_state_dict set_peft_model_state_dict torch_load
    .transformers_weight_conversion FlattenDims INCLUDE_LINEAR_LAYERS_SHORTHAND PeftConcatenate PermuteDims
    build_peft_weight_mapping convert_peft_adapter_state_dict_for_transformers
    convert_peft_config_for_transformers .warning PeftWarning
"""

_MAPPED: Final = (
    "ADALORA ADAMSS BEFT BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LILY LNTUNING LOHA LOKR LORA "
    "MISS OFT OSF PEANUT POLY PSOFT PVERA RANDLORA ROAD SHIRA SUPERTUNING TINYLORA UNILORA VBLORA VERA WAVEFT"
).split()
"""Methods of which PEFT has a table of usual targets."""


def _read() -> dict[str, list[str]]:
    """The rows as a table: path below ``peft`` -> names."""
    found: dict[str, list[str]] = {}
    package = path = ""
    for line in _ROWS.strip().splitlines():
        words = line.split()
        if not line.startswith(" "):
            package = path = words.pop(0)
            found.setdefault(path, [])
        for word in words:
            if word.startswith("."):
                path = package + word
                found.setdefault(path, [])
            else:
                found[path].append(word)
    return found


def _gathered() -> dict[str, list[str]]:
    """The table, with what packages have of their modules."""
    found = _read()
    tables = [f"TRANSFORMERS_MODELS_TO_{word}_TARGET_MODULES_MAPPING" for word in _MAPPED]
    for path in ("utils.constants", "utils.other"):
        found[path] += tables
    for path in [path for path in found if path.startswith("tuners.") and path.endswith(".model")]:
        found[path] += [one for one in tables if one.split("_")[3].lower() == path.split(".")[1].replace("_", "")]
    for path in [path for path in found if path.count(".") == 2 or path.startswith("utils.")]:
        package = path.rpartition(".")[0]
        found.setdefault(package, [])
        found[package] += [name for name in found[path] if name not in found[package]]
    found["tuners"] = [
        name
        for path, names in found.items()
        if path.startswith("tuners.") and path.count(".") == 1
        for name in names
        if name.endswith(("Config", "Model", "Init", "Embedding", "Encoder", "Type", "_model", "_state_dict"))
        or "lora" in name
    ]
    return found


LISTED: Final[dict[str, list[str]]] = _gathered()
"""Path below ``peft`` -> the names that can be imported from it; "peft" is the package itself."""
