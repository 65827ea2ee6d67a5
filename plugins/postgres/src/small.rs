//! The small state: options, leases, the checkpoint, the registry; and waiting for any of it to change.
//!
//! Times are the database's, which all hosts share.

use std::time::{Duration, Instant};

use crate::database::{Data, Database, Value};
use crate::horizon::Patience;
use crate::page::Parameters;
use crate::store::{Error, Store, first, signed, unsigned};
use crate::text;

/// Longer than anything is held: 100 years, in microseconds, which Postgres can add to any time of now.
const LONGEST: i64 = 100 * 365 * 86_400 * 1_000_000;

/// Names of Pomerium's kinds of services, by their numbers. It reads any other as the first.
const KINDS: &[&str] = &[
    "UNDEFINED_DO_NOT_USE",
    "DATABROKER",
    "AUTHORIZE",
    "AUTHENTICATE",
    "PROXY",
    "REGISTRY",
    "CONSOLE",
    "PROMETHEUS_METRICS",
];

/// Begins the name of a kind that has none.
const NAMELESS: &str = "KIND_";

/// A number that changes whenever any type's options do.
pub(crate) const OPTIONS_REVISION: &str = "(SELECT pg_catalog.hashtextextended(coalesce(string_agg(o::text, ' ' ORDER BY o.type), '') COLLATE \"C\", 0) & 9223372036854775807 FROM pomerium.record_options o)";

/// How records of a type are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Keep so many.
    pub capacity: Option<u64>,
    /// Fields to index.
    pub indexable_fields: Vec<String>,
    /// Remove what was not modified for so long, in nanoseconds.
    pub ttl: Option<u64>,
}

/// What to do with a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseAction {
    /// Take or keep it for so long, in nanoseconds.
    Hold(u64),
    /// Give it back.
    Release,
}

/// A service in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The number of its kind.
    pub kind: i32,
    /// Its URL.
    pub endpoint: String,
}

/// What a waiting host has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The server version.
    pub server_version: u64,
    /// The newest change.
    pub latest_version: u64,
    /// Changes with the options.
    pub options_revision: u64,
    /// Changes with the services.
    pub services_revision: u64,
}

fn microseconds(nanoseconds: u64) -> i64 {
    signed(nanoseconds / 1000).min(LONGEST)
}

impl<D: Database, J: Data> Store<D, J> {
    /// Returns what there is once it differs from what was seen, and after some 40 seconds in any case. A notification
    /// that was lost is made up for by a look every other second.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn wait(&self, seen: Observed) -> Result<Observed, Error> {
        /// Looks until the time is over.
        const LOOKS: u32 = 20;
        const PAUSE: Duration = Duration::from_secs(2);
        /// No more looks than one in this time, however often hosts are notified: mostly of what they have written themselves.
        const LEAST: Duration = Duration::from_millis(5);
        for _ in 0..LOOKS {
            let since = self.looked_at.get().map_or(LEAST, |at| at.elapsed());
            if since < LEAST {
                self.database.sleep(LEAST - since).await;
            }
            let observed = self.observe().await?;
            self.looked_at.set(Some(Instant::now()));
            if observed != seen {
                return Ok(observed);
            }
            self.database.notified(PAUSE).await;
        }
        self.observe().await
    }

    async fn observe(&self) -> Result<Observed, Error> {
        let query = format!(
            "SELECT {OPTIONS_REVISION} AS options, (SELECT pg_catalog.hashtextextended(coalesce(string_agg(s.kind || ' ' || s.endpoint, ' ' ORDER BY s.kind, s.endpoint), '') COLLATE \"C\", 0) \
             & 9223372036854775807 FROM pomerium.services s WHERE s.expires_at > clock_timestamp()) AS services"
        );
        let (place, rows) = self
            .read_at_place(&query, Parameters::default(), Patience::Long)
            .await?;
        let position = place.position;
        let mut row = first(rows)?;
        Ok(Observed {
            server_version: position.server_version,
            latest_version: position.latest_version,
            options_revision: row.count()?,
            services_revision: row.count()?,
        })
    }

    /// All options, by type.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn list_options(&self) -> Result<Vec<(String, Options)>, Error> {
        let query = "SELECT type, capacity, fields, ttl FROM pomerium.record_options ORDER BY type COLLATE \"C\"";
        let mut all = Vec::new();
        for mut row in self.run(query, Vec::new()).await? {
            let record_type = text::load(row.text()?.unwrap_or_default());
            all.push((
                record_type,
                Options {
                    capacity: row.integer()?.map(unsigned),
                    indexable_fields: row.texts()?.into_iter().map(text::load).collect(),
                    ttl: row.integer()?.map(unsigned),
                },
            ));
        }
        Ok(all)
    }

    /// Replaces a type's options, or removes them.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), Error> {
        let notify = "SELECT pg_notify('pomerium_record_change', '')";
        let Some(options) = options else {
            let query = format!("WITH gone AS (DELETE FROM pomerium.record_options WHERE type = $1) {notify}");
            self.run(&query, vec![Value::Text(text::store(&record_type))]).await?;
            self.index_fields(&record_type).await;
            return Ok(());
        };
        let query = format!(
            "WITH kept AS (INSERT INTO pomerium.record_options (type, capacity, fields, ttl) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (type) DO UPDATE SET capacity = EXCLUDED.capacity, fields = EXCLUDED.fields, ttl = EXCLUDED.ttl) {notify}"
        );
        let number = |number: Option<u64>| number.map_or(Value::Null, |number| Value::Integer(signed(number)));
        let parameters = vec![
            Value::Text(text::store(&record_type)),
            number(options.capacity),
            Value::Texts(
                options
                    .indexable_fields
                    .iter()
                    .map(|field| Some(text::store(field)))
                    .collect(),
            ),
            number(options.ttl),
        ];
        self.run(&query, parameters).await?;
        self.index_fields(&record_type).await;
        Ok(())
    }

    /// Takes, renews or gives back a lease. Says whether the one who asks has got it, or had it.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn lease(&self, name: String, id: String, action: LeaseAction) -> Result<bool, Error> {
        let (name, id) = (Value::Text(text::store(&name)), Value::Text(text::store(&id)));
        let rows = match action {
            // The time is read once the row is one's own, not before waiting for it.
            LeaseAction::Hold(time) => {
                let query = "INSERT INTO pomerium.leases AS l (name, id, expires_at) \
                    VALUES ($1, $2, clock_timestamp() + $3::float8 * interval '1 microsecond') \
                    ON CONFLICT (name) DO UPDATE SET id = EXCLUDED.id, expires_at = clock_timestamp() + $3::float8 * interval '1 microsecond' \
                    WHERE l.id = EXCLUDED.id OR l.expires_at < clock_timestamp() RETURNING true";
                self.run(query, vec![name, id, Value::Integer(microseconds(time))])
                    .await?
            }
            LeaseAction::Release => {
                let query = "UPDATE pomerium.leases SET expires_at = clock_timestamp() - interval '1 microsecond' \
                    WHERE name = $1 AND id = $2 AND expires_at >= clock_timestamp() RETURNING true";
                self.run(query, vec![name, id]).await?
            }
        };
        Ok(!rows.is_empty())
    }

    /// The checkpoint: a server version and a record version.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn get_checkpoint(&self) -> Result<(u64, u64), Error> {
        let query = "SELECT trunc(server_version)::text, trunc(record_version)::text FROM pomerium.checkpoints LIMIT 1";
        let Some(mut row) = self.run(query, Vec::new()).await?.pop() else {
            return Ok((0, 0));
        };
        let mut number = || -> Result<u64, Error> { Ok(row.text()?.and_then(|text| text.parse().ok()).unwrap_or(0)) };
        Ok((number()?, number()?))
    }

    /// Replaces the checkpoint.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn set_checkpoint(&self, server_version: u64, record_version: u64) -> Result<(), Error> {
        let query = "WITH kept AS (UPDATE pomerium.checkpoints SET server_version = $1::text::numeric, record_version = $2::text::numeric RETURNING true) \
             INSERT INTO pomerium.checkpoints SELECT $1::text::numeric, $2::text::numeric WHERE NOT EXISTS (SELECT FROM kept)";
        let parameters = vec![
            Value::Text(server_version.to_string()),
            Value::Text(record_version.to_string()),
        ];
        self.run(query, parameters).await.map(drop)
    }

    /// Adds services, or keeps them, for so many nanoseconds.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn report_services(&self, services: Vec<Service>, ttl: u64) -> Result<(), Error> {
        let query = "WITH kept AS (INSERT INTO pomerium.services AS s (kind, endpoint, expires_at) \
              SELECT DISTINCT u.kind, u.endpoint, clock_timestamp() + $3::float8 * interval '1 microsecond' FROM unnest($1::text[], $2::text[]) AS u(kind, endpoint) \
              ON CONFLICT (kind, endpoint) DO UPDATE SET expires_at = EXCLUDED.expires_at), \
            gone AS (DELETE FROM pomerium.services WHERE expires_at < clock_timestamp() - interval '1 hour') \
            SELECT pg_notify('pomerium_service_change', '')";
        // In one order, so that two hosts that report the same do not wait for each other in a circle.
        let mut services: Vec<_> = services
            .into_iter()
            .map(|service| (kind_name(service.kind), text::store(&service.endpoint)))
            .collect();
        services.sort();
        services.dedup();
        let (kinds, endpoints) = services
            .into_iter()
            .map(|(kind, endpoint)| (Some(kind), Some(endpoint)))
            .unzip();
        let parameters = vec![
            Value::Texts(kinds),
            Value::Texts(endpoints),
            Value::Integer(microseconds(ttl)),
        ];
        self.run(query, parameters).await.map(drop)
    }

    /// The services whose time has not run out, by kind and endpoint.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn list_services(&self) -> Result<Vec<Service>, Error> {
        let query = "SELECT kind, endpoint FROM pomerium.services WHERE expires_at > clock_timestamp()";
        let mut services = Vec::new();
        for mut row in self.run(query, Vec::new()).await? {
            services.push(Service {
                kind: kind_number(&row.text()?.unwrap_or_default()),
                endpoint: text::load(row.text()?.unwrap_or_default()),
            });
        }
        services.sort_by(|a, b| (a.kind, &a.endpoint).cmp(&(b.kind, &b.endpoint)));
        services.dedup();
        Ok(services)
    }
}

fn kind_name(kind: i32) -> String {
    let name = usize::try_from(kind).ok().and_then(|kind| KINDS.get(kind));
    name.map_or_else(|| format!("{NAMELESS}{kind}"), |name| (*name).to_owned())
}

fn kind_number(name: &str) -> i32 {
    let known = KINDS
        .iter()
        .position(|known| *known == name)
        .and_then(|kind| i32::try_from(kind).ok());
    known.or_else(|| name.strip_prefix(NAMELESS)?.parse().ok()).unwrap_or(0)
}
