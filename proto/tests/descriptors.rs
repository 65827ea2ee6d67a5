//! What depends on the descriptors: that every record type is known by its exact names and numbers, and that the opaque
//! data of the generated `Record` is the data that the protocol's own descriptor describes.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use databroker_proto::databroker::Record;
use databroker_proto::{ALL_DESCRIPTORS, PROTOCOL_DESCRIPTORS};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Value};

fn all() -> DescriptorPool {
    // The well-known types are there first, as they are where the server builds its pool.
    let mut pool = DescriptorPool::global();
    pool.decode_file_descriptor_set(ALL_DESCRIPTORS)
        .expect("descriptors that fit together");
    pool
}

/// The types of the records that Pomerium stores, with the number of their fields.
const RECORD_TYPES: &[(&str, usize)] = &[
    ("google.protobuf.Struct", 1),
    ("ietf.rfc7591.v1.ClientRegistration", 3),
    ("oauth21.AuthorizationRequest", 9),
    ("oauth21.MCPRefreshToken", 9),
    ("oauth21.PendingUpstreamAuth", 20),
    ("oauth21.UpstreamMCPToken", 15),
    ("oauth21.UpstreamOAuthClient", 7),
    ("pomerium.config.Config", 3),
    ("pomerium.config.KeyPair", 11),
    ("pomerium.config.Policy", 18),
    ("pomerium.config.Route", 86),
    ("pomerium.config.Settings", 148),
    ("pomerium.config.VersionedConfig", 2),
    ("pomerium.device.Credential", 5),
    ("pomerium.device.Enrollment", 8),
    ("pomerium.device.OwnerCredentialRecord", 3),
    ("pomerium.device.Type", 3),
    ("pomerium.events.LastError", 3),
    ("session.IdentityBinding", 4),
    ("session.Session", 14),
    ("session.SessionBinding", 6),
    ("session.SessionBindingRequest", 7),
    ("user.ServiceAccount", 8),
    ("user.User", 6),
];

#[test]
fn every_record_type_is_known() {
    let pool = all();
    let found: Vec<(&str, usize)> = RECORD_TYPES
        .iter()
        .map(|(name, _)| {
            (
                *name,
                pool.get_message_by_name(name)
                    .map_or(0, |message| message.fields().len()),
            )
        })
        .collect();
    assert_eq!(found, RECORD_TYPES);
}

/// Fields that Pomerium patches, filters by or has indexed, with their JSON names, and some that are easily got wrong.
#[test]
fn fields_have_their_names_and_numbers() {
    let pool = all();
    let check = |message: &str, field: &str, json: &str, number: u32, presence: bool| {
        let message = pool.get_message_by_name(message).expect(message);
        let found = message.get_field_by_name(field).expect(field);
        let what = (found.json_name(), found.number(), found.supports_presence());
        assert_eq!(what, (json, number, presence), "{}", found.full_name());
    };
    check("session.Session", "accessed_at", "accessedAt", 18, true);
    check("session.Session", "expires_at", "expiresAt", 4, true);
    check("session.Session", "oauth_token", "oauthToken", 7, true);
    check(
        "session.Session",
        "impersonate_session_id",
        "impersonateSessionId",
        15,
        true,
    );
    check("session.Session", "refresh_disabled", "refreshDisabled", 19, false);
    check("session.SessionBinding", "session_id", "sessionId", 2, false);
    check("session.SessionBinding", "user_id", "userId", 3, false);
    check("session.SessionBindingRequest", "key", "key", 3, false);
    check("session.IdentityBinding", "user_id", "userId", 2, false);
    check("oauth21.UpstreamMCPToken", "user_id", "userId", 1, false);
    check("oauth21.UpstreamMCPToken", "route_id", "routeId", 2, false);
    check("oauth21.PendingUpstreamAuth", "state_id", "stateId", 1, false);
    check("user.ServiceAccount", "namespace_id", "namespaceId", 8, true);
    check("pomerium.device.Credential", "webauthn", "webauthn", 5, true);
    check(
        "pomerium.config.Route",
        "tls_custom_ca_key_pair_id",
        "tlsCustomCaKeyPairId",
        82,
        true,
    );
    check(
        "pomerium.config.Settings",
        "envoy_dynamic_extensions",
        "envoyDynamicExtensions",
        182,
        true,
    );
    check(
        "pomerium.config.OutlierDetection",
        "consecutive_5xx",
        "consecutive5xx",
        1,
        true,
    );
    check("databroker.TypedOptions", "typeURL", "typeURL", 1, false);
}

#[test]
fn reflection_shows_the_protocol_and_no_record_types() {
    let pool = DescriptorPool::decode(PROTOCOL_DESCRIPTORS).expect("descriptors");
    let services: Vec<String> = pool.services().map(|service| service.full_name().to_owned()).collect();
    assert_eq!(
        services,
        [
            "databroker.DataBrokerService",
            "databroker.CheckpointService",
            "registry.Registry"
        ]
    );
    let record = pool.get_message_by_name("databroker.Record").expect("Record");
    let data = record.get_field_by_name("data").expect("data");
    assert_eq!(
        data.kind().as_message().map(|kind| kind.full_name()),
        Some("google.protobuf.Any")
    );
    let comments: usize = pool
        .file_descriptor_protos()
        .filter_map(|file| file.source_code_info.as_ref())
        .map(|info| info.location.len())
        .sum();
    assert!(comments > 100, "{comments} comments");
    assert!(pool.get_message_by_name("session.Session").is_none());
}

/// An encoded Any of a session: its id, then a field that nobody knows, then the version, out of order.
const SESSION: &[u8] = b"\n\x23type.googleapis.com/session.Session\x12\x0c\x12\x02s1\xfa\x3e\x02??\n\x01v";

#[test]
fn record_data_passes_byte_for_byte() {
    let descriptor = all().get_message_by_name("databroker.Record").expect("Record");
    let check = |data: Option<&[u8]>| {
        let mut real = DynamicMessage::new(descriptor.clone());
        real.set_field_by_name("type", Value::String("type.googleapis.com/session.Session".to_owned()));
        real.set_field_by_name("id", Value::String("s1".to_owned()));
        if let Some(data) = data {
            let any = descriptor
                .get_field_by_name("data")
                .unwrap()
                .kind()
                .as_message()
                .unwrap()
                .clone();
            let any = DynamicMessage::decode(any, data).expect("an Any");
            real.set_field_by_name("data", Value::Message(any));
        }
        let sent = real.encode_to_vec();

        let opaque = Record::decode(Bytes::from(sent.clone())).expect("a record");
        assert_eq!(opaque.data.as_deref(), data);
        assert_eq!(opaque.id, "s1");
        let passed_on = opaque.encode_to_vec();
        assert_eq!(passed_on, sent);
        assert_eq!(
            DynamicMessage::decode(descriptor.clone(), passed_on.as_slice()).expect("a record"),
            real
        );
    };
    check(Some(SESSION));
    check(Some(b""));
    check(None);
}

#[test]
fn record_data_shares_the_memory_it_arrived_in() {
    let sent = Bytes::from(
        Record {
            data: Some(Bytes::from_static(SESSION)),
            ..Record::default()
        }
        .encode_to_vec(),
    );
    let data = Record::decode(sent.clone()).expect("a record").data.expect("data");
    assert!(sent.as_ptr_range().contains(&data.as_ptr()));
}
