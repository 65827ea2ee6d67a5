//! Settings of Pomerium that mean nothing to a databroker, so that the file of a whole Pomerium can be used as it is.
//!
//! They are passed over with one line for all of them, apart from those where passing over could surprise: somebody who
//! has set up a cluster must hear that there is none.

/// What becomes of a name that is none of our settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It is for other parts of Pomerium.
    Other,
    /// It is for a databroker, and this one does not do it: what happens instead.
    NotDone(&'static str),
    /// Pomerium does not have it any more and does not start with it.
    Removed,
    /// Nobody has it.
    Unknown,
}

/// What becomes of a name in lower case.
pub(super) fn classify(name: &str) -> Foreign {
    if let Some((_, instead)) = NOT_DONE.iter().find(|(not_done, _)| *not_done == name) {
        Foreign::NotDone(instead)
    } else if REMOVED.contains(&name) {
        Foreign::Removed
    } else if OTHER.contains(&name) {
        Foreign::Other
    } else {
        Foreign::Unknown
    }
}

/// All names of which somebody may have mistyped one.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OTHER.iter().copied().chain(NOT_DONE.iter().map(|(name, _)| *name))
}

const NO_CLUSTER: &str = "this process is no member of a Pomerium cluster: it serves by itself";

pub(super) const NOT_DONE: [(&str, &str); 8] = [
    (
        "autocert",
        "certificates are not fetched: set certificate_file and certificate_key_file, or tls_derive",
    ),
    ("databroker_cluster_leader_id", NO_CLUSTER),
    ("databroker_cluster_node_id", NO_CLUSTER),
    ("databroker_cluster_nodes", NO_CLUSTER),
    ("databroker_raft_bind_address", NO_CLUSTER),
    (
        "debug_address",
        "there is no such listener: health_check_addr and metrics_address say how it is",
    ),
    (
        "override_certificate_name",
        "it is for clients, and this process calls no other service: the certificate says which names it is good for",
    ),
    ("otel_log_level", "log_level is for the exporter of traces too"),
];

const REMOVED: [&str; 13] = [
    "client_ca",
    "client_ca_file",
    "idp_qps",
    "idp_refresh_directory_interval",
    "idp_refresh_directory_timeout",
    "idp_service_account",
    "policy_file",
    "tracing_datadog_address",
    "tracing_jaeger_agent_endpoint",
    "tracing_jaeger_collector_endpoint",
    "tracing_provider",
    "tracing_sample_rate",
    "tracing_zipkin_endpoint",
];

const OTHER: [&str; 102] = [
    "access_log_fields",
    "address",
    "allow_upgrades",
    "authenticate_internal_service_url",
    "authenticate_service_url",
    "authorize_internal_service_url",
    "authorize_log_fields",
    "authorize_service_url",
    "authorize_service_urls",
    "auto_apply_changesets",
    "autocert_ca",
    "autocert_dir",
    "autocert_eab_key_id",
    "autocert_eab_mac_key",
    "autocert_email",
    "autocert_must_staple",
    "autocert_trusted_ca",
    "autocert_trusted_ca_file",
    "autocert_use_staging",
    "bearer_token_format",
    "blob_storage",
    "brandingoptions",
    "certificate_authority",
    "certificate_authority_file",
    "circuit_breaker_thresholds",
    "codec_type",
    "cookie_domain",
    "cookie_expire",
    "cookie_http_only",
    "cookie_name",
    "cookie_same_site",
    "cookie_secret",
    "cookie_secret_file",
    "databroker_internal_service_url",
    "databroker_service_url",
    "databroker_service_urls",
    "default_upstream_timeout",
    "dns_failure_refresh_rate",
    "dns_lookup_family",
    "dns_query_timeout",
    "dns_query_tries",
    "dns_refresh_rate",
    "dns_resolvers",
    "dns_udp_max_queries",
    "dns_use_tcp",
    "downstream_mtls",
    "envoy_admin_access_log_path",
    "envoy_admin_address",
    "envoy_admin_profile_path",
    "envoy_bind_config_freebind",
    "envoy_bind_config_source_address",
    "envoy_dynamic_extensions",
    "google_cloud_serverless_authentication_service_account",
    "grpc_client_timeout",
    "headers",
    "headers_with_underscores_action",
    "health_check_systemd_disabled",
    "http_redirect_addr",
    "identity_providers",
    "idp_access_token_allowed_audiences",
    "idp_client_id",
    "idp_client_secret",
    "idp_client_secret_file",
    "idp_provider",
    "idp_provider_url",
    "idp_request_params",
    "idp_scopes",
    "insecure_server",
    "installation_id",
    "jwt_claims_headers",
    "jwt_groups_filter",
    "jwt_issuer_format",
    "jwtgroupsfilter",
    "mcp_allowed_as_metadata_domains",
    "mcp_allowed_client_id_domains",
    "merge_slashes",
    "normalize_path",
    "pass_identity_headers",
    "path_with_escaped_slashes_action",
    "policy",
    "programmatic_redirect_domain_whitelist",
    "proxy_log_level",
    "routes",
    "runtime_flags",
    "session_recording_concurrency",
    "set_response_headers",
    "signing_key",
    "signing_key_file",
    "signout_redirect_url",
    "skip_xff_append",
    "ssh_address",
    "ssh_host_key_files",
    "ssh_host_keys",
    "ssh_rls_additional_entries",
    "ssh_rls_enabled",
    "ssh_user_ca_key",
    "ssh_user_ca_key_file",
    "timeout_idle",
    "timeout_read",
    "timeout_write",
    "use_proxy_protocol",
    "xff_num_trusted_hops",
];
