//! Health over HTTP, of a server that lives and ends.

use serde_json::Value;

use databroker_host::telemetry::Instruments;
use databroker_host::telemetry::health;

use crate::server::Server;
use crate::web::Web;

async fn probes(web: &Web) -> Vec<u16> {
    let mut statuses = Vec::new();
    for path in ["/healthz", "/startupz", "/readyz", "/status"] {
        statuses.push(web.get(path, &[]).await.0);
    }
    statuses
}

#[tokio::test]
async fn probes_tell_a_server_that_serves_from_one_that_does_not() {
    let before = Web::serve(health::router(Instruments::default().health)).await;
    assert_eq!(probes(&before).await, [200, 503, 503, 200], "before the store is open");
    let (_, _, body) = before.get("/readyz", &[]).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["storage.backend"]["status"], "UNKNOWN", "{body}");

    let server = Server::start().await;
    let web = Web::serve(health::router(server.instruments.health.clone())).await;
    server.get("nobody").await.unwrap_err();
    assert_eq!(probes(&web).await, [200, 200, 200, 200], "when it serves");
    let (_, head, body) = web.get("/status", &[]).await;
    assert!(head.contains("application/json"), "{head}");
    let body: Value = serde_json::from_str(&body).unwrap();
    for name in body["checks"].as_array().unwrap() {
        assert_eq!(body["statuses"][name.as_str().unwrap()]["status"], "RUNNING", "{body}");
    }

    server.stop();
    server.ended().await.unwrap();
    assert_eq!(probes(&web).await, [200, 200, 503, 200], "when it goes down");
    let (_, _, body) = web.get("/readyz", &[]).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["databroker.grpc"]["status"], "TERMINATING", "{body}");
    assert_eq!(web.get("/elsewhere", &[]).await.0, 404);
}
