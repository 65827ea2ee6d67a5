//! Tokens as Pomerium's clients make them, and the wrong ones that a server must refuse.

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// The lifetime of a token in seconds.
const LIFETIME: i64 = 3600;

/// The token that lets a client in: HS256, and `exp` as its only claim.
pub(crate) fn valid(secret: &[u8]) -> anyhow::Result<String> {
    signed(secret, Algorithm::HS256, &json!({ "exp": now() + LIFETIME }))
}

/// A token with these claims.
pub(crate) fn signed(secret: &[u8], algorithm: Algorithm, claims: &Value) -> anyhow::Result<String> {
    jsonwebtoken::encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).context("signing a token")
}

/// A token without a signature, as the algorithm `none` has it.
pub(crate) fn unsigned(claims: &Value) -> String {
    let header = URL_SAFE_NO_PAD.encode(json!({ "alg": "none", "typ": "JWT" }).to_string());
    let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
    format!("{header}.{claims}.")
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    let since_epoch = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
}
