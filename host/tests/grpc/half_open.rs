//! A client that is gone without a word: nothing closes its connection, and nothing comes from it any more.

use std::net::SocketAddr;
use std::time::Duration;

use databroker_proto::databroker::SyncRequest;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;

use crate::server::{Credentials, PATIENCE, SERVER_VERSION, Server, TYPE, record};

/// `docs/limits.md` says 80 s.
const FOUND_OUT: Duration = Duration::from_secs(80);

/// Between one client and the server: carries bytes both ways until it is cut, and then keeps both connections open and
/// carries nothing, as a network does whose cable is pulled.
struct Network {
    address: SocketAddr,
    cut: watch::Sender<bool>,
    /// Ends once the server has closed its connection.
    closed: JoinHandle<()>,
}

impl Network {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, is_cut) = watch::channel(false);
        let closed = tokio::spawn(async move {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(server).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let up_is_cut = is_cut.clone();
            let up = tokio::spawn(async move {
                let mut bytes = vec![0; 16 << 10];
                loop {
                    let read = from_client.read(&mut bytes).await.unwrap_or(0);
                    if read == 0 || *up_is_cut.borrow() {
                        // The server is not told.
                        return (from_client, to_server);
                    }
                    to_server.write_all(&bytes[..read]).await.unwrap();
                }
            });
            let mut bytes = vec![0; 16 << 10];
            loop {
                match from_server.read(&mut bytes).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) if !*is_cut.borrow() => to_client.write_all(&bytes[..read]).await.unwrap(),
                    Ok(_) => {}
                }
            }
            up.abort();
        });
        Self { address, cut, closed }
    }
}

// It takes as long as the server does, which is all the time that there is between its questions.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_gone_without_a_word_is_found_out_and_an_idle_one_stays() {
    let server = Server::start().await;
    let network = Network::to(server.address).await;
    let start = SyncRequest {
        server_version: SERVER_VERSION,
        record_version: 0,
        r#type: TYPE.to_owned(),
        wait: None,
    };
    // Both have a stream, which is why neither is idle by the server's own measure.
    let mut idle = server.client().sync(start.clone()).await.unwrap().into_inner();
    let channel = Endpoint::from_shared(format!("http://{}", network.address))
        .unwrap()
        .connect_lazy();
    let credentials = Credentials(Some(server.token().try_into().unwrap()));
    let mut client = DataBrokerServiceClient::new(InterceptedService::new(channel, credentials));
    let mut gone = client.sync(start).await.unwrap().into_inner();
    server.put(vec![record("before", "")]).await;
    let first = tokio::time::timeout(PATIENCE, gone.message()).await;
    assert!(first.unwrap().unwrap().is_some());
    calls(&server, 2).await;

    network.cut.send_replace(true);
    tokio::time::timeout(FOUND_OUT + PATIENCE, network.closed)
        .await
        .expect("the connection of a client that is gone stays open")
        .unwrap();
    let mut seen = Vec::new();
    server.put(vec![record("after", "")]).await;
    while seen.last().is_none_or(|id| id != "after") {
        let message = tokio::time::timeout(PATIENCE, idle.message()).await.unwrap().unwrap();
        if let Some(databroker_proto::databroker::sync_response::Response::Record(record)) = message.unwrap().response {
            seen.push(record.id);
        }
    }
    assert_eq!(seen, ["before", "after"]);
    // Nor is the stream of the one that is gone open any more.
    calls(&server, 1).await;
}

/// Waits until so many calls are open.
async fn calls(server: &Server, count: usize) {
    let reached = async {
        while server.calls.count() != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reached = tokio::time::timeout(PATIENCE, reached).await;
    assert!(
        reached.is_ok(),
        "{} calls are open instead of {count}",
        server.calls.count()
    );
}
