//! All names that a connection string may have: libpq's, and those of Pomerium's driver, pgx.
//!
//! One table says what becomes of each, so that what is not supported is known by name and refused in words. A name that
//! only looks unknown to libpq may still be one of the server's own settings, which pgx sends along; the usual ones of
//! those are taken too.

/// What becomes of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// It is read.
    Read,
    /// It is one of the server's settings, sent along with the connection.
    Server,
    /// It is refused unless its value is one of these, under which nothing is missing.
    Only(&'static [&'static str], &'static str),
    /// It is refused, and this says what to do.
    Refused(&'static str),
}

use Treatment::{Only, Read, Refused, Server};

/// A name, the environment variable that stands for it where libpq has one, and what becomes of it.
pub(crate) struct Keyword {
    pub(crate) name: &'static str,
    pub(crate) variable: Option<&'static str>,
    pub(crate) treatment: Treatment,
}

const fn keyword(name: &'static str, variable: Option<&'static str>, treatment: Treatment) -> Keyword {
    Keyword {
        name,
        variable,
        treatment,
    }
}

/// Why tuning of keep-alive probes is refused.
const KEEPALIVES: &str = "set the system's defaults instead; every statement has a time limit of its own";

/// Why Kerberos is refused.
const KERBEROS: &str = "use a password or a client certificate";

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    keyword("host", Some("PGHOST"), Read),
    keyword("hostaddr", Some("PGHOSTADDR"), Read),
    keyword("port", Some("PGPORT"), Read),
    keyword("dbname", Some("PGDATABASE"), Read),
    keyword("user", Some("PGUSER"), Read),
    keyword("password", Some("PGPASSWORD"), Read),
    keyword("passfile", Some("PGPASSFILE"), Read),
    keyword("connect_timeout", Some("PGCONNECT_TIMEOUT"), Read),
    keyword("application_name", Some("PGAPPNAME"), Read),
    keyword("fallback_application_name", None, Read),
    keyword("options", Some("PGOPTIONS"), Read),
    keyword("target_session_attrs", Some("PGTARGETSESSIONATTRS"), Read),
    keyword("load_balance_hosts", Some("PGLOADBALANCEHOSTS"), Read),
    keyword("sslmode", Some("PGSSLMODE"), Read),
    keyword("sslrootcert", Some("PGSSLROOTCERT"), Read),
    keyword("sslcert", Some("PGSSLCERT"), Read),
    keyword("sslkey", Some("PGSSLKEY"), Read),
    keyword("sslsni", Some("PGSSLSNI"), Read),
    keyword("sslnegotiation", Some("PGSSLNEGOTIATION"), Read),
    keyword(
        "sslcertmode",
        Some("PGSSLCERTMODE"),
        Only(&["allow", "disable"], "leave out sslcert and sslkey, or set both"),
    ),
    keyword(
        "sslpassword",
        None,
        Refused("keep the client's key in a file without a password that only this process can read"),
    ),
    keyword("sslinline", None, Refused("keep certificates in files, and name those")),
    keyword(
        "sslcompression",
        Some("PGSSLCOMPRESSION"),
        Only(&["0"], "TLS has no safe compression"),
    ),
    keyword("sslcrl", Some("PGSSLCRL"), Refused("revocation lists are not read")),
    keyword(
        "sslcrldir",
        Some("PGSSLCRLDIR"),
        Refused("revocation lists are not read"),
    ),
    keyword(
        "sslkeylogfile",
        None,
        Refused("the keys of connections are never written down"),
    ),
    keyword(
        "ssl_min_protocol_version",
        Some("PGSSLMINPROTOCOLVERSION"),
        Only(
            &["TLSv1", "TLSv1.1", "TLSv1.2"],
            "TLS 1.2 and 1.3 are offered, and the newer one is taken where the server has it",
        ),
    ),
    keyword(
        "ssl_max_protocol_version",
        Some("PGSSLMAXPROTOCOLVERSION"),
        Only(
            &["TLSv1.3"],
            "TLS 1.2 and 1.3 are offered, and the newer one is taken where the server has it",
        ),
    ),
    keyword(
        "min_protocol_version",
        Some("PGMINPROTOCOLVERSION"),
        Only(&["3.0"], "version 3.0 of the protocol is spoken"),
    ),
    keyword(
        "max_protocol_version",
        Some("PGMAXPROTOCOLVERSION"),
        Only(&["3.0", "latest"], "version 3.0 of the protocol is spoken"),
    ),
    keyword(
        "require_auth",
        Some("PGREQUIREAUTH"),
        Refused("say in the server's pg_hba.conf how one may log in"),
    ),
    keyword(
        "channel_binding",
        Some("PGCHANNELBINDING"),
        Only(&["disable", "prefer"], "use sslmode=verify-full"),
    ),
    keyword(
        "gssencmode",
        Some("PGGSSENCMODE"),
        Only(&["disable", "prefer"], KERBEROS),
    ),
    keyword("gsslib", Some("PGGSSLIB"), Refused(KERBEROS)),
    keyword("gssdelegation", Some("PGGSSDELEGATION"), Only(&["0"], KERBEROS)),
    keyword("krbsrvname", Some("PGKRBSRVNAME"), Refused(KERBEROS)),
    keyword(
        "requirepeer",
        Some("PGREQUIREPEER"),
        Refused("protect the socket's folder by its permissions"),
    ),
    keyword(
        "client_encoding",
        Some("PGCLIENTENCODING"),
        Only(&["UTF8", "UTF-8", "utf8", "utf-8", "auto"], "all text is UTF-8"),
    ),
    keyword(
        "replication",
        None,
        Only(&["0", "off", "false", "no"], "this is no replica"),
    ),
    keyword(
        "service",
        Some("PGSERVICE"),
        Refused("write the service's settings into the connection string"),
    ),
    keyword(
        "servicefile",
        Some("PGSERVICEFILE"),
        Refused("write the service's settings into the connection string"),
    ),
    keyword("keepalives", None, Refused(KEEPALIVES)),
    keyword("keepalives_idle", None, Refused(KEEPALIVES)),
    keyword("keepalives_interval", None, Refused(KEEPALIVES)),
    keyword("keepalives_count", None, Refused(KEEPALIVES)),
    keyword("tcp_user_timeout", None, Refused(KEEPALIVES)),
    // pgx's.
    keyword("pool_max_conns", None, Read),
    keyword("pool_min_conns", None, Read),
    keyword("pool_min_idle_conns", None, Refused("use pool_min_conns")),
    keyword("pool_max_conn_lifetime", None, Read),
    keyword("pool_max_conn_lifetime_jitter", None, Read),
    keyword("pool_max_conn_idle_time", None, Read),
    keyword("pool_health_check_period", None, Read),
    keyword("statement_cache_capacity", None, Read),
    keyword("description_cache_capacity", None, Read),
    keyword("default_query_exec_mode", None, Read),
    keyword("krbspn", None, Refused(KERBEROS)),
    // The server's own.
    keyword("search_path", None, Server),
    keyword("statement_timeout", None, Server),
    keyword("lock_timeout", None, Server),
    keyword("idle_in_transaction_session_timeout", None, Server),
    keyword("idle_session_timeout", None, Server),
    keyword("client_connection_check_interval", None, Server),
    keyword("synchronous_commit", None, Server),
    keyword("work_mem", None, Server),
    keyword("jit", None, Server),
    keyword("plan_cache_mode", None, Server),
    keyword("timezone", None, Only(&["UTC", "utc"], "times are UTC")),
    keyword("TimeZone", None, Only(&["UTC", "utc"], "times are UTC")),
];

/// The entry of a name.
pub(crate) fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

/// The name that is most like a mistyped one, if any is.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    /// Below this, names have little in common.
    const ALIKE: f64 = 0.7;
    KEYWORDS
        .iter()
        .map(|keyword| {
            (
                keyword.name,
                strsim::normalized_damerau_levenshtein(&name.to_lowercase(), keyword.name),
            )
        })
        .filter(|(_, likeness)| *likeness >= ALIKE)
        .max_by(|(_, one), (_, other)| one.total_cmp(other))
        .map(|(name, _)| name)
}
