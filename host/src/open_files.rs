//! How many files and sockets the process may have open, and how many of those connections may take.
//!
//! Where connections took all of them, a plugin could open no file, nobody could be told by a probe, and the log's next
//! line might be lost. So a part is kept for the rest of the process. Systems start processes with a low limit that
//! each may raise by itself, for the sake of programs of old; this one raises it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many are kept for what is neither a connection of gRPC nor what a plugin is granted: probes and scrapes, 64 of each at
/// most, the log, and the runtime's own.
const KEPT: u64 = 256;

/// More than anybody needs; where there is no limit, or one of a billion, this is taken.
const MOST: u64 = 1 << 20;

/// What an operator is told where there may be fewer connections than are wanted.
pub const TOO_FEW: &str = "there is room for fewer connections than GRPC_MAX_CONNECTIONS, since few files may be open: raise the \
                           limit (LimitNOFILE of a systemd unit, ulimit -n of a shell)";

/// Raises the limit as far as the process may, and tells what it is then.
pub fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(MOST, |maximum| maximum.min(MOST));
    let now = limit.current.unwrap_or(MOST);
    let raised = Rlimit {
        current: Some(most),
        maximum: limit.maximum,
    };
    if now < most && setrlimit(Resource::Nofile, raised).is_ok() {
        most
    } else {
        now
    }
}

/// How many connections there may be, of those that are wanted, under a limit of open files, where the plugin may have so many
/// of its own. Where the limit is very low, half of it is kept.
pub fn connections(wanted: usize, limit: u64, of_plugin: usize) -> usize {
    let of_plugin = u64::try_from(of_plugin).unwrap_or(u64::MAX);
    let left = limit
        .saturating_sub(KEPT.saturating_add(of_plugin).min(limit / 2))
        .max(1);
    wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_kept_for_what_is_no_connection() {
        for (wanted, limit, of_plugin, expected) in [
            (1024, 524_288, 0, 1024),
            (1024, 1024, 0, 768),
            (1024, 1024, 100, 668),
            (1024, 1024, 256, 512),
            (1024, 1024, usize::MAX, 512),
            (2000, 4096, 256, 2000),
            (1024, 64, 0, 32),
            (1024, 0, 0, 1),
        ] {
            assert_eq!(
                connections(wanted, limit, of_plugin),
                expected,
                "{wanted} of {limit} beside {of_plugin}"
            );
        }
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let raised = raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current.unwrap_or(MOST), raised);
        assert!(limit.maximum.is_none_or(|maximum| raised == maximum || raised >= MOST));
    }
}
