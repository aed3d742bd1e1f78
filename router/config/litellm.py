"""Keys that a file may hold and that have no effect here, by section: LiteLLM's own, and this project's of a later version.

LiteLLM's names come from its documentation ("All settings") and its ``types/router.py``. They are listed so that a whole LiteLLM
file loads with a warning a key, while a misspelt key is still an error. The value of such a key is not looked at: it may name
environment variables that only LiteLLM needs.
"""

from __future__ import annotations

from collections.abc import Mapping

LITELLM_KEYS: Mapping[str, frozenset[str]] = {
    "": frozenset(
        """
        access_groups assistant_settings cache callback_settings credential_list default_team_settings files_settings
        finetune_settings guardrails include mcp_aliases mcp_servers pass_through_endpoints policies policy_attachments
        prompts search_tools vector_store_registry worker_registry
        """.split()
    ),
    "model_list[]": frozenset("access_groups blocked model_id".split()),
    "litellm_params": frozenset(
        """
        additional_drop_params allow_client_keepalive_override allowed_openai_params api_type audio aws_access_key_id
        aws_region_name aws_role_name aws_secret_access_key aws_session_name aws_session_token azure_password azure_scope
        azure_username budget_duration cache_control_injection_points cache_creation_input_token_cost
        cache_read_input_token_cost client_id client_secret configurable_clientside_auth_params cooldown_time
        default_api_key_rpm_limit default_api_key_tpm_limit disable_add_transform_inline_image_block drop_params
        enable_json_schema_validation extra_body fallbacks frequency_penalty guardrails guided_json headers
        input_cost_per_audio_token input_cost_per_character input_cost_per_second input_cost_per_token instructions itpm
        keepalive_seconds litellm_credential_name litellm_trace_id logit_bias logprobs max_budget max_completion_tokens
        max_file_size_mb max_output_tokens max_retries max_tokens merge_reasoning_content_in_choices metadata mock_response
        modalities modify_params num_retries otpm output_cost_per_audio_token output_cost_per_second output_cost_per_token
        parallel_tool_calls presence_penalty prompt_id provider_affinity_header reasoning_effort region_name response_format
        retry_policy seed service_tier ssl_certificate ssl_verify stop stream stream_options stream_timeout tag_regex tags
        temperature tenant_id thinking tool_choice tools top_k top_logprobs top_p turn_off_message_logging
        use_chat_completions_api use_in_pass_through use_litellm_proxy use_xai_oauth user vertex_credentials vertex_location
        vertex_project voice
        """.split()
    ),
    "router_settings": frozenset(
        """
        alerting_config allowed_fails_policy assistants_config cache_kwargs cache_responses caching_groups client_ttl
        content_policy_fallbacks context_window_fallbacks custom_routing_strategy debug_level default_litellm_params
        default_max_parallel_requests default_priority deployment_affinity_ttl_seconds disable_cooldowns
        enable_health_check_routing enable_pre_call_check enable_pre_call_checks enable_tag_filtering
        enable_weighted_failover guardrail_list health_check_ignore_transient_errors health_check_staleness_threshold
        ignore_invalid_deployments max_fallbacks max_retries model_group_affinity_config model_group_retry_policy
        optional_pre_call_checks polling_interval provider_budget_config retry_after retry_policy router_general_settings
        routing_groups search_tools set_verbose stream_timeout tag_filtering_match_any tag_routing_prefix weights
        """.split()
    ),
    "general_settings": frozenset(
        """
        admin_only_routes alert_to_webhook_url alert_types alerting alerting_args alerting_threshold
        allow_client_side_credentials allow_requests_on_db_unavailable allow_user_auth allowed_ips allowed_routes
        always_include_stream_usage audit_log_callbacks auto_redirect_ui_login_to_sso background_health_checks
        completion_model control_plane_url coordination_backend custom_auth custom_auth_run_common_checks
        custom_key_generate custom_key_update custom_sso custom_ui_sso_sign_in_handler database_connection_pool_limit
        database_connection_pool_timeout database_connection_timeout database_type database_url default_team_disabled
        disable_adding_master_key_hash_to_db disable_error_logs disable_master_key_return disable_prisma_schema_update
        disable_reset_budget disable_responses_id_security disable_retry_on_max_parallel_request_limit_error
        disable_spend_logs disable_spend_updates embedding_model enable_health_check_routing enable_jwt_auth
        enable_oauth2_auth enable_oauth2_proxy_auth enable_public_model_hub enforce_user_param enforced_params
        forward_client_headers_to_llm_api forward_llm_provider_auth_headers forward_openai_org_id
        global_max_parallel_requests health_check_concurrency health_check_details health_check_ignore_transient_errors
        health_check_interval health_check_staleness_threshold image_generation_model infer_model_from_keys
        key_management_settings key_management_system litellm_jwtauth litellm_key_header_name litellm_license
        max_parallel_requests max_request_size_mb max_response_size_mb maximum_spend_logs_cleanup_cron
        maximum_spend_logs_retention_interval maximum_spend_logs_retention_period mcp_client_side_auth_header_name
        mcp_internal_ip_ranges mcp_required_fields mcp_trusted_proxy_ranges moderation_model oauth2_config_mappings
        pass_through_endpoints pass_through_request_timeout proxy_batch_polling_interval proxy_batch_write_at
        proxy_budget_rescheduler_max_time proxy_budget_rescheduler_min_time public_routes reject_clientside_metadata_tags
        role_permissions search_tools service_account_settings spend_report_frequency store_model_in_db
        store_prompts_in_spend_logs supported_db_objects token_rate_limit_type ui_access_mode ui_theme_config
        use_azure_key_vault use_client_credentials_pass_through_routes use_google_kms use_redis_transaction_buffer
        use_shared_health_check use_x_forwarded_for user_api_key_cache_ttl user_header_mappings user_header_name
        user_mcp_management_mode
        """.split()
    ),
    "litellm_settings": frozenset(
        """
        LITELLM_DISABLE_STOP_SEQUENCE_LIMIT add_function_to_prompt aiohttp_trust_env allowed_fails api_base api_key
        audit_log_callbacks azure_key_vault_uri cache cache_params callbacks content_policy_fallbacks
        context_window_fallbacks cooldown_time custom_provider_map datadog_params default_in_memory_ttl
        default_internal_user_params default_key_generate_params default_redis_batch_cache_expiry default_redis_ttl
        default_team_params default_team_settings default_vertex_config disable_add_transform_inline_image_block
        disable_add_user_agent_to_request_tags disable_copilot_system_to_assistant disable_end_user_cost_tracking
        disable_end_user_cost_tracking_prometheus_only disable_hf_tokenizer_download drop_params
        enable_caching_on_provider_specific_optional_params enable_json_schema_validation enable_key_alias_format_validation
        enable_preview_features extra_spend_tag_headers failure_callback force_ipv4 forward_traceparent_to_llm_provider
        guardrails input_callback internal_user_budget_duration json_logs key_generation_settings langfuse_default_tags
        log_raw_request_response max_budget max_end_user_budget max_end_user_budget_id max_internal_user_budget
        max_parallel_requests max_ui_session_budget max_user_budget mcp_aliases mcp_semantic_tool_filter model_alias_map
        modify_params network_mock num_retries_per_request priority_reservation priority_reservation_settings
        prometheus_emit_stream_label prometheus_initialize_budget_metrics prometheus_metrics_config public_agent_groups
        public_mcp_servers public_model_groups public_model_groups_links redact_messages_in_exceptions
        redact_user_api_key_info require_auth_for_metrics_endpoint s3_callback_params service_callback service_callbacks
        set_verbose ssl_certificate ssl_security_level ssl_verify store_audit_logs success_callback tag_budget_config
        telemetry token turn_off_message_logging upperbound_key_generate_params
        use_chat_completions_url_for_anthropic_messages use_litellm_proxy user_url_validation
        """.split()
    ),
}

# Where a LiteLLM key that is ignored in one place has its counterpart.
COUNTERPARTS: Mapping[tuple[str, str], str] = {
    ("", "include"): "put everything into one file",
    ("litellm_params", "cooldown_time"): "set it in router_settings or groups",
    ("litellm_params", "num_retries"): "set it in router_settings or groups",
    ("litellm_params", "max_retries"): "router_settings.num_retries is the counterpart",
    ("litellm_params", "headers"): "extra_headers is the counterpart",
    ("litellm_params", "stream_timeout"): "timeout bounds a dial; idle_timeout_s a silent session",
    ("router_settings", "stream_timeout"): "timeout bounds a dial; idle_timeout_s a silent session",
    ("litellm_params", "ssl_verify"): "certificates are always verified; ca_file names an authority of your own",
    ("litellm_params", "ssl_certificate"): "client_cert is the counterpart",
    ("litellm_params", "fallbacks"): "set it in router_settings or groups",
    ("router_settings", "max_retries"): "num_retries is the counterpart",
    ("router_settings", "default_max_parallel_requests"): "max_sessions of a deployment is the counterpart",
    ("router_settings", "max_fallbacks"): "each fallback group is tried at most once; max_attempts bounds them",
    ("general_settings", "completion_model"): "default_model is the counterpart",
    ("general_settings", "max_parallel_requests"): "max_sessions of a deployment is the counterpart",
    ("general_settings", "global_max_parallel_requests"): "max_sessions is the counterpart",
    ("general_settings", "background_health_checks"): "health_check of a deployment is the counterpart",
    ("general_settings", "health_check_interval"): "health_check.interval_s of a deployment is the counterpart",
    ("general_settings", "use_x_forwarded_for"): "trusted_proxies is the counterpart",
    ("general_settings", "max_request_size_mb"): "router_settings.max_message_bytes is the counterpart",
    ("litellm_settings", "allowed_fails"): "set it in router_settings",
    ("litellm_settings", "cooldown_time"): "set it in router_settings",
    ("litellm_settings", "json_logs"): "general_settings.log_format is the counterpart",
    ("litellm_settings", "set_verbose"): "general_settings.log_level is the counterpart",
}

# Designed, and part of a later version.
LATER_KEYS: Mapping[str, frozenset[str]] = {
    "router_settings": frozenset("resume dialects".split()),
    "groups": frozenset("resume dialects".split()),
}

# ``model_info`` is free-form in LiteLLM, so these and all others pass in silence; they are listed for the editor's schema only.
MODEL_INFO_KEYS = frozenset(
    "base_model input_cost_per_token max_input_tokens max_output_tokens max_tokens output_cost_per_token tier".split()
)

# Options of LiteLLM's own strategies; they mean nothing to the strategy that stands in for one of them.
LITELLM_STRATEGY_OPTIONS = frozenset("lowest_latency_buffer max_latency_list_size ttl".split())

# LiteLLM's names for servers that this project dials as ``openai_compatible``.
COMPATIBLE_PROVIDERS = frozenset("custom_openai hosted_vllm litellm_proxy lm_studio openai_like vllm".split())

# What may stand before the slash in LiteLLM's ``litellm_params.model``, besides this project's own providers. The list only
# tells a foreign provider from a misspelt one; a name in neither is foreign too unless it is close to one of ours.
LITELLM_PROVIDERS = frozenset(
    """
        a2a_agent ai21 ai21_chat aiml aiohttp_openai amazon_nova anthropic anthropic_text aws_polly azure_ai azure_text
        baseten bedrock bytez cerebras chatgpt clarifai cloudflare codestral cohere cohere_chat cometapi compactifai custom
        custom_openai dashscope databricks datarobot deepgram deepinfra deepseek docker_model_runner dotprompt elevenlabs
        empower fal_ai featherless_ai fireworks_ai friendliai galadriel gemini gigachat github github_copilot gradient_ai
        groq heroku hosted_vllm huggingface hyperbolic infinity jina_ai lambda_ai langgraph lemonade litellm_agent
        litellm_proxy llamafile lm_studio manus maritalk meta_llama minimax mistral moonshot morph nebius nlp_cloud novita
        nscale nvidia_nim oci ollama ollama_chat oobabooga openai_like openrouter ovhcloud palm perplexity petals poe
        predibase publicai ragflow recraft replicate runwayml sagemaker sagemaker_chat sambanova sap snowflake stability
        text-completion-codestral text-completion-openai together_ai topaz triton v0 vercel_ai_gateway vertex_ai
        vertex_ai_beta vllm volcengine voyage wandb watsonx watsonx_text xinference zai
        """.split()
)
