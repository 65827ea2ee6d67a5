//! The records of the benchmark: `session.Session`s of about 600 bytes, as Pomerium's identity providers give them.
//!
//! They have no claims: Pomerium's server v0.32.0 does not survive an index on a type whose records have any.

use std::time::SystemTime;

use bytes::Bytes;
use databroker_proto::databroker::Record;
use prost::Message;
use prost_types::{Any, Timestamp};

/// The type URL of the records.
pub const TYPE: &str = "type.googleapis.com/session.Session";

/// A field without an index.
pub const UNINDEXED: &str = "idp_id";

/// The fields of `session.Session` that a session of an OpenID provider has.
#[derive(Clone, PartialEq, Message)]
struct Session {
    #[prost(string, tag = "2")]
    id: String,
    #[prost(string, tag = "3")]
    user_id: String,
    #[prost(message, optional, tag = "4")]
    expires_at: Option<Timestamp>,
    #[prost(message, optional, tag = "6")]
    id_token: Option<IdToken>,
    #[prost(message, optional, tag = "7")]
    oauth_token: Option<OAuthToken>,
    #[prost(message, optional, tag = "14")]
    issued_at: Option<Timestamp>,
    #[prost(message, optional, tag = "18")]
    accessed_at: Option<Timestamp>,
    #[prost(string, tag = "20")]
    idp_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct IdToken {
    #[prost(string, tag = "1")]
    issuer: String,
    #[prost(string, tag = "2")]
    subject: String,
    #[prost(string, tag = "5")]
    raw: String,
}

#[derive(Clone, PartialEq, Message)]
struct OAuthToken {
    #[prost(string, tag = "1")]
    access_token: String,
    #[prost(string, tag = "2")]
    token_type: String,
    #[prost(string, tag = "4")]
    refresh_token: String,
}

/// The id of a session.
pub fn id(number: usize) -> String {
    format!("session-{number:08}")
}

/// The user of a session, whom it shares with nobody: what a query by user finds is one record.
pub fn user_id(number: usize) -> String {
    format!("user-{number:08}")
}

/// A session to put.
pub fn record(number: usize) -> Record {
    let now = Timestamp::from(SystemTime::now());
    let user_id = user_id(number);
    let session = Session {
        id: id(number),
        user_id: user_id.clone(),
        expires_at: Some(now),
        id_token: Some(IdToken {
            issuer: "https://accounts.example.com".to_owned(),
            subject: user_id.clone(),
            raw: opaque(number, 260),
        }),
        oauth_token: Some(OAuthToken {
            access_token: opaque(number ^ 0x5555, 100),
            token_type: "Bearer".to_owned(),
            refresh_token: opaque(number ^ 0xaaaa, 40),
        }),
        issued_at: Some(now),
        accessed_at: Some(now),
        idp_id: "identity-provider".to_owned(),
    };
    put(number, &session)
}

/// What a Patch of `accessed_at` sends.
pub fn accessed(number: usize) -> Record {
    let session = Session {
        accessed_at: Some(Timestamp::from(SystemTime::now())),
        ..Session::default()
    };
    put(number, &session)
}

fn put(number: usize, session: &Session) -> Record {
    let any = Any {
        type_url: TYPE.to_owned(),
        value: session.encode_to_vec(),
    };
    Record {
        r#type: TYPE.to_owned(),
        id: id(number),
        data: Some(Bytes::from(any.encode_to_vec())),
        ..Record::default()
    }
}

/// A token's text: as little compressible as a real one, and the same in every run.
fn opaque(seed: usize, length: usize) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let index = (state >> 58) as usize % ALPHABET.len();
        ALPHABET.get(index).copied().map_or('A', char::from)
    };
    (0..length).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_about_600_bytes() {
        let length = record(1).encoded_len();
        assert!((550..=750).contains(&length), "{length}");
    }
}
