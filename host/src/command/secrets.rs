//! Secrets within records: sessions hold the tokens of their users, settings and routes those of the installation. A
//! person who looks at a record mostly looks for something else, on a screen that others may see.

use prost_reflect::{FieldDescriptor, MessageDescriptor};
use serde_json::Value;

use super::shown::message_of;

/// What stands in a secret's place.
const REDACTED: &str = "[redacted]";

/// Fields that are secret in any message.
const NAMES: &[&str] = &[
    "access_token",
    "autocert_eab_key_id",
    "autocert_eab_mac_key",
    "client_secret",
    "cookie_secret",
    "databroker_storage_connection_string",
    "idp_client_secret",
    "key_bytes",
    "kubernetes_service_account_token",
    "metrics_basic_auth",
    "otel_exporter_otlp_headers",
    "otel_exporter_otlp_traces_headers",
    "pkce_verifier",
    "refresh_token",
    "set_request_headers",
    "shared_secret",
    "signing_key",
    "ssh_host_keys",
    "ssh_user_ca_key",
    "tls_client_key",
    "upstream_refresh_token",
];

/// Fields that are secret in one message, while their name means something else in others.
const FULL_NAMES: &[&str] = &[
    "pomerium.config.KeyPair.key",
    "session.IDToken.raw",
    "pomerium.identity.Profile.id_token",
    "pomerium.identity.Profile.oauth_token",
];

fn is_secret(field: &FieldDescriptor) -> bool {
    NAMES.contains(&field.name()) || FULL_NAMES.contains(&field.full_name())
}

/// Replaces the secrets in the JSON of an `Any`; `find` gives the descriptor of a message by its name.
pub fn redact_any(value: &mut Value, find: &dyn Fn(&str) -> Option<MessageDescriptor>) {
    let type_url = value.get("@type").and_then(Value::as_str).unwrap_or_default();
    let name = type_url.rsplit_once('/').map_or(type_url, |(_, name)| name);
    if let Some(message) = find(name) {
        // Messages with a JSON form of their own have it under this name; an `Any` within an `Any` is one of them.
        if message.full_name() == "google.protobuf.Any"
            && let Some(inner) = value.get_mut("value")
        {
            return redact_any(inner, find);
        }
        redact(value, &message, find);
    }
}

fn redact(value: &mut Value, message: &MessageDescriptor, find: &dyn Fn(&str) -> Option<MessageDescriptor>) {
    if message.full_name() == "google.protobuf.Any" {
        return redact_any(value, find);
    }
    let Some(object) = value.as_object_mut() else {
        return;
    };
    for (name, value) in object {
        let Some(field) = message.get_field_by_json_name(name) else {
            continue;
        };
        if is_secret(&field) {
            *value = Value::from(REDACTED);
            continue;
        }
        let kind = field.kind();
        let Some(inner) = message_of(&kind) else {
            continue;
        };
        if field.is_map() {
            let kind = inner.map_entry_value_field().kind();
            if let (Some(inner), Some(entries)) = (message_of(&kind), value.as_object_mut()) {
                entries.values_mut().for_each(|value| redact(value, inner, find));
            }
        } else if let Some(items) = value.as_array_mut() {
            items.iter_mut().for_each(|value| redact(value, inner, find));
        } else {
            redact(value, inner, find);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use serde_json::json;

    use super::*;
    use crate::data::Descriptors;

    #[test]
    fn secrets_are_replaced_wherever_they_are() {
        let descriptors = Descriptors::built_in();
        let find = |name: &str| descriptors.descriptor(name);
        let session = json!({
            "@type": "type.googleapis.com/session.Session",
            "id": "s1",
            "idToken": {"issuer": "https://example.com", "raw": "eyJ"},
            "oauthToken": {"accessToken": "secret", "refreshToken": "secret", "tokenType": "Bearer"},
        });
        let shown = json!({
            "@type": "type.googleapis.com/session.Session",
            "id": "s1",
            "idToken": {"issuer": "https://example.com", "raw": REDACTED},
            "oauthToken": {"accessToken": REDACTED, "refreshToken": REDACTED, "tokenType": "Bearer"},
        });
        let config = json!({
            "@type": "type.googleapis.com/pomerium.config.Config",
            "name": "one",
            "settings": {"sharedSecret": "secret", "certificates": [{"id": "c", "keyBytes": "c2VjcmV0"}]},
            "routes": [{"name": "r", "setRequestHeaders": {"authorization": "secret"}}],
        });
        let config_shown = json!({
            "@type": "type.googleapis.com/pomerium.config.Config",
            "name": "one",
            "settings": {"sharedSecret": REDACTED, "certificates": [{"id": "c", "keyBytes": REDACTED}]},
            "routes": [{"name": "r", "setRequestHeaders": REDACTED}],
        });
        let within = |inner: &Value| json!({"@type": "type.googleapis.com/google.protobuf.Any", "value": inner});
        for (value, expected) in [
            (session.clone(), shown.clone()),
            (config, config_shown),
            (within(&session), within(&shown)),
        ] {
            let mut value = value;
            redact_any(&mut value, &find);
            assert_eq!(value, expected);
        }
    }

    /// The record types' files call what is secret so: at a field, or at a message, of which then something must be.
    #[test]
    fn all_that_the_record_types_call_secret_is() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/records");
        let descriptors = Descriptors::built_in();
        let mut found = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let mut scope: Vec<String> = Vec::new();
            let mut secret = false;
            for line in text.lines().map(str::trim) {
                let words: Vec<&str> = line.split_whitespace().collect();
                match words.as_slice() {
                    ["package", package] => scope = vec![package.trim_end_matches(';').to_owned()],
                    ["//", ..] => secret = line.ends_with("Secret."),
                    ["message" | "enum" | "oneof", name, "{"] => {
                        // A oneof is no scope of names; its place is held all the same.
                        scope.push(if words.first() == Some(&"oneof") {
                            String::new()
                        } else {
                            (*name).to_owned()
                        });
                        if std::mem::take(&mut secret) {
                            let message = descriptors.descriptor(&path(&scope)).unwrap();
                            assert!(message.fields().any(|field| is_secret(&field)), "{name}");
                            found += 1;
                        }
                    }
                    ["}"] => {
                        scope.pop();
                    }
                    [.., name, "=", _] if std::mem::take(&mut secret) => {
                        let message = descriptors.descriptor(&path(&scope)).unwrap();
                        let field = message.get_field_by_name(name).unwrap();
                        assert!(is_secret(&field), "{}", field.full_name());
                        found += 1;
                    }
                    _ => {}
                }
            }
        }
        assert!(found >= 20, "{found}");
    }

    fn path(scope: &[String]) -> String {
        let parts: Vec<&str> = scope
            .iter()
            .map(String::as_str)
            .filter(|part| !part.is_empty())
            .collect();
        parts.join(".")
    }

    #[test]
    fn every_full_name_is_a_field() {
        let descriptors = Descriptors::built_in();
        for full_name in FULL_NAMES {
            let (message, field) = full_name.rsplit_once('.').unwrap();
            let message = descriptors.descriptor(message).unwrap_or_else(|| panic!("{full_name}"));
            assert!(message.get_field_by_name(field).is_some(), "{full_name}");
        }
    }
}
