//! Who may call: whoever has the shared secret and proves it with a token that has not expired.
//!
//! The token is a JSON Web Token of HS256 in the metadata key `jwt`, with the one claim `exp`. It is checked once, when
//! a call begins; a stream outlives its token. The client is told as little as Pomerium tells it. The log says more,
//! because two processes with different secrets, or with clocks apart, are the most frequent mistake of an
//! installation; it says it at most once in a while for each reason, so that a client that tries again and again does
//! not fill a disk.
//!
//! While the secret is being replaced, a token by the one from before is good too. Only that the log says now and then
//! that somebody still uses it tells when the change is done. The secrets can be replaced while calls run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::caller::Caller;
use crate::secret::{Secrets, SharedSecret};
use crate::telemetry::metrics::{Metrics, Refusal};
use crate::telemetry::seldom::Seldom;

/// Where the token is in a call's metadata.
pub const METADATA_KEY: &str = "jwt";

/// How long the tokens that this program makes are good for; as long as Pomerium's.
const LIFETIME: Duration = Duration::from_secs(60 * 60);

/// How often a refusal for one and the same reason is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How often it is logged that the secret from before is still used.
const PREVIOUS_LOG_INTERVAL: Duration = Duration::from_secs(60);

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
    /// Which kind of refusal it is, for metrics.
    fn kind(&self) -> Refusal {
        match self {
            Self::Missing => Refusal::Missing,
            Self::Malformed(_) => Refusal::Malformed,
            Self::Algorithm(_) => Refusal::Algorithm,
            Self::WrongKey => Refusal::WrongKey,
            Self::ExtraClaim(_) => Refusal::ExtraClaim,
            Self::NoExpiry => Refusal::NoExpiry,
            Self::Expired { .. } => Refusal::Expired,
        }
    }

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
    token_for(secret, LIFETIME)
}

/// Makes a token that is good for so long from now, in whole seconds.
///
/// # Errors
///
/// Never with a secret of the right length, which is the only kind there is.
pub fn token_for(secret: &SharedSecret, lifetime: Duration) -> Result<String, jsonwebtoken::errors::Error> {
    let expiry = since_epoch().saturating_add(lifetime).as_secs();
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
            // Whoever does not know what `crit` names must refuse the token, and nothing that it could name is known
            // here.
            Ok(decoded) if decoded.header.crit.is_some() => {
                return Err(TokenError::Malformed(
                    "its header has crit, which nothing here answers to".to_owned(),
                ));
            }
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

/// Lets calls in that have a good token, and logs why others have not. Clones share the secrets and the log's memory.
#[derive(Clone)]
pub struct Guard(Arc<GuardState>);

impl fmt::Debug for Guard {
    /// Secrets are within.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Guard").finish_non_exhaustive()
    }
}

struct GuardState {
    /// Replaced as a whole, so that a call sees the secrets of one moment.
    verifiers: ArcSwap<Verifiers>,
    refusals: RefusalLog,
    /// Whether it is to be logged that a call was let in with the secret from before.
    previous_logged: Mutex<Seldom>,
    /// Where refusals are counted, and uses of the secret from before.
    metrics: Arc<Metrics>,
}

struct Verifiers {
    current: Verifier,
    previous: Option<Verifier>,
}

impl From<Secrets> for Verifiers {
    fn from(secrets: Secrets) -> Self {
        Self {
            current: Verifier::new(&secrets.current),
            previous: secrets.previous.as_ref().map(Verifier::new),
        }
    }
}

/// Which secret a token was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MadeWith {
    Current,
    Previous,
}

impl Verifiers {
    /// Why a token is refused is said with regard to the current secret, unless only the one from before made it.
    fn check(&self, token: &[u8], now: Duration) -> Result<MadeWith, TokenError> {
        let error = match (self.current.check(token, now), &self.previous) {
            (Ok(()), _) => return Ok(MadeWith::Current),
            (Err(TokenError::WrongKey), Some(previous)) => match previous.check(token, now) {
                Ok(()) => return Ok(MadeWith::Previous),
                Err(error) => error,
            },
            (Err(error), _) => error,
        };
        Err(error)
    }
}

impl Guard {
    /// A guard that lets in who has one of these secrets, and counts whom it does not.
    pub fn new(secrets: impl Into<Secrets>, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(GuardState {
            verifiers: ArcSwap::from_pointee(Verifiers::from(secrets.into())),
            refusals: RefusalLog::default(),
            previous_logged: Mutex::default(),
            metrics,
        }))
    }

    /// Lets in who has one of these secrets from now on. Calls that are open stay so.
    pub fn replace(&self, secrets: impl Into<Secrets>) {
        self.0.verifiers.store(Arc::new(Verifiers::from(secrets.into())));
    }

    /// How many calls were let in with the secret from before, since the start.
    pub fn previous_uses(&self) -> u64 {
        self.0.metrics.previous_secret_uses.load(Ordering::Relaxed)
    }

    fn used_previous(&self, caller: &Caller) {
        self.0.metrics.previous_secret_uses.fetch_add(1, Ordering::Relaxed);
        if let Some(calls) = self.turn(Instant::now()) {
            let peer = caller.peer.address().map(tracing::field::display);
            tracing::info!(peer, calls, "the previous shared secret is still used");
        }
    }

    /// How many calls have come since this was last logged, if it is to be logged now.
    fn turn(&self, now: Instant) -> Option<u64> {
        let unlogged = self.0.previous_logged.lock().turn(now, PREVIOUS_LOG_INTERVAL)?;
        Some(unlogged.saturating_add(1))
    }
}

impl Interceptor for Guard {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        // Of several values the first one counts: a member of a Pomerium cluster that forwards a call adds its own
        // token after the caller's.
        let outcome = match request.metadata().get(METADATA_KEY) {
            None => Err(TokenError::Missing),
            Some(token) => self.0.verifiers.load().check(token.as_bytes(), since_epoch()),
        };
        let caller = request.extensions().get::<Arc<Caller>>().cloned().unwrap_or_default();
        match outcome {
            Ok(made_with) => {
                caller.peer.set_known();
                if made_with == MadeWith::Previous {
                    self.used_previous(&caller);
                }
                // Nobody needs it any more, and a stream would keep it for days.
                request.metadata_mut().remove(METADATA_KEY);
                Ok(request)
            }
            Err(error) => {
                self.0.metrics.refused.count(error.kind());
                self.0.refusals.refused(&error, &caller);
                Err(Status::unauthenticated(error.message()))
            }
        }
    }
}

/// Logs refusals, each reason at most once in an interval.
#[derive(Default)]
struct RefusalLog {
    /// By reason, of which there are as many as [`Refusal`] has.
    reasons: Mutex<BTreeMap<Refusal, Seldom>>,
}

impl RefusalLog {
    fn refused(&self, error: &TokenError, caller: &Caller) {
        if let Some(unlogged) = self.turn(error, Instant::now()) {
            let Caller {
                path: method,
                peer,
                request_id,
            } = caller;
            let peer = peer.address().map(tracing::field::display);
            let request_id = request_id.as_deref();
            tracing::warn!(method, peer, request_id, reason = %error, unlogged, "refused a call");
        }
    }

    /// How many refusals were passed over since the last one that was logged, if this one is to be logged.
    fn turn(&self, error: &TokenError, now: Instant) -> Option<u64> {
        let mut reasons = self.reasons.lock();
        reasons.entry(error.kind()).or_default().turn(now, LOG_INTERVAL)
    }
}

#[cfg(test)]
mod tests;
