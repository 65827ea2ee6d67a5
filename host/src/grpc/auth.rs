//! Who may call: whoever has the shared secret and proves it with a token that has not expired.
//!
//! The token is a JSON Web Token of HS256 in the metadata key `jwt`, with the one claim `exp`. It is checked once, when a call
//! begins; a stream outlives its token. The client is told as little as Pomerium tells it. The log says more, because two
//! processes with different secrets, or with clocks apart, are the most frequent mistake of an installation; it says it at
//! most once in a while for each reason, so that a client that tries again and again does not fill a disk.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::settings::SharedSecret;

/// Where the token is in a call's metadata.
pub const METADATA_KEY: &str = "jwt";

/// How long the tokens that this program makes are good for; as long as Pomerium's.
const LIFETIME: Duration = Duration::from_secs(60 * 60);

/// How often a refusal for one and the same reason is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How much of a text from a token the log shows, in characters.
const SHOWN: usize = 64;

/// Why a call is not let in; for the log.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum TokenError {
    /// There is no token.
    #[error("the call has no token: the client has no shared secret configured")]
    Missing,
    /// It is not three parts of base64 with JSON in the first two, or has claims of no use.
    #[error("the token is malformed: {0}")]
    Malformed(String),
    /// It is signed in another way.
    #[error("the token is signed with {0:?}, only HS256 is accepted")]
    Algorithm(String),
    /// It is signed with another key.
    #[error("wrong key: the client's shared secret is another than this server's")]
    WrongKey,
    /// It says more than it should.
    #[error("the token has the claim {0:?}, only exp is accepted")]
    ExtraClaim(String),
    /// It does not say when it expires.
    #[error("the token has no claim exp that is a number")]
    NoExpiry,
    /// It was good once.
    #[error(
        "the token expired {ago} s ago: it says {expiry} and this server's clock says {now}; if the client has just made it, \
         the two clocks differ"
    )]
    Expired {
        /// For how long it has not been good any more, in seconds.
        ago: f64,
        /// When it expired.
        expiry: String,
        /// The time here.
        now: String,
    },
}

impl TokenError {
    /// What the client is told.
    fn message(&self) -> &'static str {
        if *self == Self::Missing {
            "unauthenticated"
        } else {
            "invalid JWT"
        }
    }
}

/// Makes a token that is good for an hour from now.
///
/// # Errors
///
/// Never with a secret of the right length, which is the only kind there is.
pub fn token(secret: &SharedSecret) -> Result<String, jsonwebtoken::errors::Error> {
    let expiry = since_epoch().saturating_add(LIFETIME).as_secs();
    let claims = Map::from_iter([("exp".to_owned(), Value::from(expiry))]);
    jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Checks tokens against the shared secret.
pub struct Verifier {
    /// The secret; its `Debug` shows nothing.
    key: DecodingKey,
    /// HS256 and nothing else: the claims are checked here, where the rules are Pomerium's.
    validation: Validation,
}

impl Verifier {
    /// A verifier for tokens made with this secret.
    pub fn new(secret: &SharedSecret) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        Self {
            key: DecodingKey::from_secret(secret.as_bytes()),
            validation,
        }
    }

    /// Checks a token at a time, given since the Unix epoch. The signature is compared in constant time.
    ///
    /// # Errors
    ///
    /// See [`TokenError`].
    pub fn check(&self, token: &[u8], now: Duration) -> Result<(), TokenError> {
        let claims = match jsonwebtoken::decode::<Map<String, Value>>(token, &self.key, &self.validation) {
            Ok(decoded) => decoded.claims,
            Err(error) => return Err(refusal(token, error.kind())),
        };
        if let Some(name) = claims.keys().find(|name| *name != "exp") {
            return Err(TokenError::ExtraClaim(shown(name)));
        }
        let expiry = claims
            .get("exp")
            .and_then(Value::as_f64)
            .ok_or(TokenError::NoExpiry)?
            .trunc();
        let ago = now.as_secs_f64() - expiry;
        if ago > 0.0 {
            return Err(TokenError::Expired {
                ago,
                expiry: time(expiry),
                now: time(now.as_secs_f64()),
            });
        }
        Ok(())
    }
}

/// Why the library refused a token.
fn refusal(token: &[u8], error: &ErrorKind) -> TokenError {
    match error {
        ErrorKind::InvalidSignature => TokenError::WrongKey,
        // A header with an algorithm that the library does not know is malformed to it.
        _ => match algorithm(token) {
            Some(algorithm) if algorithm != "HS256" => TokenError::Algorithm(shown(&algorithm)),
            _ => TokenError::Malformed(match error {
                ErrorKind::InvalidToken => "it is not three parts joined by dots".to_owned(),
                ErrorKind::Base64(_) => "a part is not base64 of the URL alphabet without padding".to_owned(),
                ErrorKind::Json(_) | ErrorKind::Utf8(_) => "a part is not the JSON that belongs there".to_owned(),
                other => format!("{other:?}"),
            }),
        },
    }
}

/// The algorithm that the header of a token names.
fn algorithm(token: &[u8]) -> Option<String> {
    let header = token.split(|byte| *byte == b'.').next()?;
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
    header.get("alg")?.as_str().map(str::to_owned)
}

/// The beginning of a text that a client has chosen.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// A time for people; for one before 1970 the number as it is.
fn time(seconds: f64) -> String {
    /// The last second that RFC 3339 can say.
    const LAST: f64 = 253_402_300_799.0;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|_| seconds <= LAST)
        .and_then(|since_epoch| UNIX_EPOCH.checked_add(since_epoch))
        .map_or_else(
            || seconds.to_string(),
            |time| humantime::format_rfc3339_seconds(time).to_string(),
        )
}

/// Lets calls in that have a good token, and logs why others have not. Clones share the log's memory.
#[derive(Clone)]
pub struct Guard(Arc<GuardState>);

struct GuardState {
    verifier: Verifier,
    log: RefusalLog,
}

impl Guard {
    /// A guard that lets in who has this secret.
    pub fn new(secret: &SharedSecret) -> Self {
        Self(Arc::new(GuardState {
            verifier: Verifier::new(secret),
            log: RefusalLog::default(),
        }))
    }
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        // Of several values the first one counts: a member of a Pomerium cluster that forwards a call adds its own token
        // after the caller's.
        let outcome = match request.metadata().get(METADATA_KEY) {
            None => Err(TokenError::Missing),
            Some(token) => self.0.verifier.check(token.as_bytes(), since_epoch()),
        };
        match outcome {
            Ok(()) => Ok(request),
            Err(error) => {
                self.0.log.refused(&error, request.remote_addr());
                Err(Status::unauthenticated(error.message()))
            }
        }
    }
}

/// Logs refusals, each reason at most once in an interval.
#[derive(Default)]
struct RefusalLog {
    /// By reason: when it was last logged and how often it was not since. There are as many as [`TokenError`] has.
    reasons: Mutex<BTreeMap<u8, (Instant, u64)>>,
}

impl RefusalLog {
    fn refused(&self, error: &TokenError, peer: Option<SocketAddr>) {
        if let Some(unlogged) = self.turn(error, Instant::now()) {
            let peer = peer.map(tracing::field::display);
            tracing::warn!(peer, reason = %error, unlogged, "refused a call");
        }
    }

    /// How many refusals were passed over since the last one that was logged, if this one is to be logged.
    fn turn(&self, error: &TokenError, now: Instant) -> Option<u64> {
        let reason = match error {
            TokenError::Missing => 0,
            TokenError::Malformed(_) => 1,
            TokenError::Algorithm(_) => 2,
            TokenError::WrongKey => 3,
            TokenError::ExtraClaim(_) => 4,
            TokenError::NoExpiry => 5,
            TokenError::Expired { .. } => 6,
        };
        let mut reasons = self.reasons.lock();
        let (logged, unlogged) = reasons
            .get(&reason)
            .copied()
            .map_or((None, 0), |(at, count)| (Some(at), count));
        match logged {
            Some(at) if now.saturating_duration_since(at) < LOG_INTERVAL => {
                reasons.insert(reason, (at, unlogged.saturating_add(1)));
                None
            }
            _ => {
                reasons.insert(reason, (now, 0));
                Some(unlogged)
            }
        }
    }
}

#[cfg(test)]
mod tests;
