//! What is answered to calls of services and methods that are not there: UNIMPLEMENTED with a sentence that says so,
//! and for services that Pomerium's own databroker has, what it means that they are missing.

/// How much of a path is shown, in characters.
const SHOWN: usize = 128;

/// The sentence for a path, `/SERVICE/METHOD`.
pub fn sentence(path: &str) -> String {
    let path: String = path.trim_start_matches('/').chars().take(SHOWN).collect();
    let (service, method) = path.split_once('/').unwrap_or((&path, ""));
    match service {
        "pomerium.config.ConfigService" => {
            "this server does not serve pomerium.config.ConfigService: Pomerium's own services do not call it, but tools that \
             manage routes and policies over it need Pomerium's databroker"
                .to_owned()
        }
        "health.HealthNotifier" => {
            "this server does not serve health.HealthNotifier: what the parts of a Pomerium process report of their health is \
             not collected here; grpc.health.v1.Health says how this server is"
                .to_owned()
        }
        "databroker.DataBrokerService"
        | "databroker.CheckpointService"
        | "registry.Registry"
        | "grpc.health.v1.Health"
        | "grpc.reflection.v1.ServerReflection"
        | "grpc.reflection.v1alpha.ServerReflection" => format!("{service} has no method {method:?}"),
        _ => format!("this server does not serve {service:?}; ask for what it serves by gRPC reflection"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_not_there() {
        for (path, part) in [
            ("/pomerium.config.ConfigService/ListRoutes", "tools that manage routes"),
            ("/health.HealthNotifier/SyncHealth", "not collected here"),
            (
                "/databroker.DataBrokerService/Drop",
                "databroker.DataBrokerService has no method \"Drop\"",
            ),
            ("/some.Other/Call", "does not serve \"some.Other\""),
            ("/", "does not serve \"\""),
            ("", "does not serve \"\""),
            ("//", "does not serve \"\""),
        ] {
            assert!(sentence(path).contains(part), "{path:?}: {}", sentence(path));
        }
        assert!(sentence(&"ä".repeat(10_000)).chars().count() < 300);
    }
}
