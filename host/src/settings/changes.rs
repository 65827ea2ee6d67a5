//! What changes when the settings are read again while the process serves.

use super::keys::{self, ALL, Group, Key};
use super::{Mistake, Settings};

/// Settings whose values have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that count from now on.
    pub applied: Vec<&'static Key>,
    /// Those that count after a restart only.
    pub restart: Vec<&'static Key>,
}

impl Changes {
    /// The names of settings, for the log.
    pub fn names(keys: &[&'static Key]) -> String {
        let names: Vec<_> = keys.iter().map(|key| key.variable).collect();
        names.join(", ")
    }
}

impl Settings {
    /// Takes over what may change while the process serves, and tells what has changed. What needs a restart stays as
    /// it was, and is told again the next time.
    ///
    /// What is taken over are the secrets, the certificates of both listeners, the level of the log and the grace
    /// period; whoever calls this hands them on.
    ///
    /// # Errors
    ///
    /// The shared secret is no longer configured. One that is made up instead would lock out everybody who calls, so
    /// all settings stay as they were.
    pub fn reload(&mut self, mut new: Self) -> Result<Changes, Mistake> {
        if new.secrets.generated && !self.secrets.generated {
            return Err(Mistake {
                setting: keys::SHARED_SECRET.variable.to_owned(),
                wrong: "it was set when the settings were last read, and is not set now".to_owned(),
                remedy: "set it again; to serve with a secret made for the run, restart".into(),
            });
        }
        let tls_stays = self.tls.is_some() == new.tls.is_some();
        let metrics_stay = match (&self.telemetry.metrics, &new.telemetry.metrics) {
            (Some(old), Some(new)) => old.tls.is_some() == new.tls.is_some(),
            _ => false,
        };
        let mut changes = Changes::default();
        for key in ALL {
            let value = new.fingerprints.0.get(key.variable).copied();
            if value == self.fingerprints.0.get(key.variable).copied() {
                continue;
            }
            let possible = match key.group {
                Group::Tls => tls_stays,
                Group::Metrics => metrics_stay,
                _ => true,
            };
            if !(key.changeable && possible) {
                changes.restart.push(key);
                continue;
            }
            changes.applied.push(key);
            match value {
                Some(value) => self.fingerprints.0.insert(key.variable, value),
                None => self.fingerprints.0.remove(key.variable),
            };
        }
        if self.secrets.generated && new.secrets.generated {
            // Reading the settings made another one, which nobody knows.
            new.secrets.current = self.secrets.current.clone();
            let derive = new.tls.as_mut().and_then(|tls| tls.derive.as_mut());
            derive
                .into_iter()
                .for_each(|derive| derive.secret = self.secrets.current.clone());
        }
        self.secrets = new.secrets;
        if tls_stays {
            self.tls = new.tls;
        }
        if let (true, Some(old), Some(new)) = (metrics_stay, &mut self.telemetry.metrics, new.telemetry.metrics) {
            old.tls = new.tls;
        }
        self.telemetry.logs.level = new.telemetry.logs.level;
        self.grace_period = new.grace_period;
        self.notices = new.notices;
        Ok(changes)
    }
}
