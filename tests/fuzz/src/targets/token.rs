//! Tokens of clients: the whole of a token as it comes, and claims under a good signature, since nobody gets further without
//! one.

use std::sync::LazyLock;
use std::time::Duration;

use databroker_host::grpc::auth::{TokenError, Verifier};
use databroker_host::settings::SharedSecret;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::Value;

use crate::Target;

pub const TARGET: Target = Target {
    name: "token",
    feed,
    short: 20_000,
    words: &[
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9",
        "eyJhbGciOiJub25lIn0",
        ".",
        "{\"exp\":",
        "\"exp\"",
        "\"nbf\"",
        "\"aud\"",
        "1e400",
        "-1",
        "null",
    ],
};

/// The time at which tokens are checked, since the Unix epoch.
const NOW: Duration = Duration::from_secs(1_700_000_000);

static SECRET: LazyLock<SharedSecret> = LazyLock::new(SharedSecret::generate);
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| Verifier::new(&SECRET));

fn feed(bytes: &[u8]) {
    // The secret is another one in each process, so nothing that comes as it is can be good.
    check(bytes).expect_err("a token that nobody has signed was accepted");
    let Ok(claims) = serde_json::from_slice::<Value>(bytes) else {
        return;
    };
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let Ok(token) = jsonwebtoken::encode(&Header::default(), &claims, &key) else {
        return;
    };
    if check(token.as_bytes()).is_ok() {
        let claims = claims.as_object().expect("claims are an object");
        assert!(claims.keys().eq(["exp"]), "other claims were accepted: {claims:?}");
        let expiry = claims["exp"].as_f64().expect("an expiry is a number");
        assert!(expiry + 60.0 >= NOW.as_secs_f64(), "it expired at {expiry}");
    }
}

fn check(token: &[u8]) -> Result<(), TokenError> {
    let outcome = VERIFIER.check(token, NOW);
    if let Err(error) = &outcome {
        // It is in the answer and in the log.
        assert!(
            error.to_string().len() < 1024,
            "{} bytes of a reason",
            error.to_string().len()
        );
    }
    outcome
}
