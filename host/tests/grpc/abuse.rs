//! The program under abuse: whatever clients do, its memory stays below what `docs/limits.md` says, and another caller is
//! served. Each attack is made against a process of its own, and its numbers are printed (`cargo test ... -- --nocapture`).

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use databroker_host::grpc::auth::token;
use databroker_host::open_files;
use databroker_host::settings::SharedSecret;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use databroker_proto::databroker::{GetRequest, PutRequest, SyncLatestRequest, SyncRequest};
use futures::StreamExt as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::Request;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::program::{Serving, program};
use crate::server::{Credentials, PATIENCE, TYPE, record};

/// How long another caller waits for an answer during an attack, on a machine that is busy with the attacker too.
const DEADLINE: Duration = Duration::from_secs(10);

const MIB: u64 = 1 << 20;

/// The attacks take turns, so that none is taken for another's fault.
static TURN: Mutex<()> = Mutex::const_new(());

const WATCH: &str = "/grpc.health.v1.Health/Watch";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const SYNC: &str = "/databroker.DataBrokerService/Sync";
const SYNC_LATEST: &str = "/databroker.DataBrokerService/SyncLatest";
const PUT: &str = "/databroker.DataBrokerService/Put";

/// The program, and somebody who calls it all the while.
struct Attacked {
    serving: Serving,
    address: SocketAddr,
    secret: SharedSecret,
    before: u64,
    _turn: MutexGuard<'static, ()>,
}

type Client = DataBrokerServiceClient<InterceptedService<Channel, Credentials>>;

impl Attacked {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let turn = TURN.lock().await;
        open_files::raise();
        let secret = SharedSecret::generate();
        let text = secret.to_base64();
        let mut environment = vec![
            ("GRPC_ADDRESS", "127.0.0.1:0"),
            ("SHARED_SECRET", text.as_str()),
            ("HEALTH_CHECK_ADDR", "off"),
            ("LOG_FORMAT", "json"),
        ];
        environment.extend(settings);
        let mut command = program(&["serve"], &environment);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let serving = Serving(child);
        let line = log
            .find(|line| line.contains("\"serving\""))
            .expect("it does not serve");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = line["address"].as_str().unwrap().parse().unwrap();
        std::thread::spawn(move || log.for_each(drop));
        let mut attacked = Self {
            serving,
            address,
            secret,
            before: 0,
            _turn: turn,
        };
        let records = vec![record("other", "caller")];
        attacked.client().put(PutRequest { records }).await.unwrap();
        attacked.before = attacked.memory("VmRSS:");
        attacked
    }

    fn token(&self) -> String {
        token(&self.secret).unwrap()
    }

    fn client(&self) -> Client {
        let channel = Endpoint::from_shared(format!("http://{}", self.address))
            .unwrap()
            .connect_lazy();
        let credentials = Credentials(Some(self.token().try_into().unwrap()));
        DataBrokerServiceClient::with_interceptor(channel, credentials)
    }

    /// A number of the process' memory, in bytes.
    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.serving.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Somebody who asks for a record again and again, on one connection and now and then on a new one.
    fn other_caller(&self) -> OtherCaller {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut clients = [self.client(), self.client()];
        let fresh = self.address;
        let token = self.token();
        let task = tokio::spawn(async move {
            let (mut calls, mut slowest) = (0_u32, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                // The second one is a new connection each time.
                let channel = Endpoint::from_shared(format!("http://{fresh}")).unwrap().connect_lazy();
                let credentials = Credentials(Some(token.clone().try_into().unwrap()));
                clients[1] = DataBrokerServiceClient::with_interceptor(channel, credentials);
                for (client, which) in clients.iter_mut().zip(["an old", "a new"]) {
                    let request = GetRequest {
                        r#type: TYPE.to_owned(),
                        id: "other".to_owned(),
                    };
                    let answer = tokio::time::timeout(DEADLINE, client.get(request)).await;
                    let answer = answer.unwrap_or_else(|_| panic!("no answer on {which} connection"));
                    answer.unwrap_or_else(|status| panic!("{which} connection: {status}"));
                    calls += 1;
                }
                slowest = slowest.max(began.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (calls, slowest)
        });
        OtherCaller { stop, task }
    }

    /// Says how it went; the memory has grown by less than this at its highest.
    async fn survives(self, attack: &str, other: OtherCaller, most: u64) {
        other.stop.store(true, Ordering::Relaxed);
        let (calls, slowest) = other.task.await.unwrap();
        let grown = self.memory("VmHWM:").saturating_sub(self.before);
        println!(
            "{attack}: memory {} MiB before, at most {} MiB more; {calls} calls by another caller, the slowest pair in {slowest:?}",
            self.before / MIB,
            grown / MIB,
        );
        assert!(calls > 0);
        assert!(grown < most, "{attack}: {} MiB more than before", grown / MIB);
    }

    /// A connection from an address of its own.
    async fn connect(&self, from: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 1, from), 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    async fn attacker(&self, from: u8) -> Attacker {
        let stream = self.connect(from).await;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(64 << 10)
            .initial_connection_window_size(1 << 20)
            .max_concurrent_reset_streams(0)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        Attacker {
            sender,
            connection: tokio::spawn(async move {
                let _ = connection.await;
            }),
            address: self.address,
        }
    }
}

struct OtherCaller {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(u32, Duration)>,
}

/// A connection that does as it likes.
struct Attacker {
    sender: http2::SendRequest<BoxBody<Bytes, std::convert::Infallible>>,
    connection: JoinHandle<()>,
    address: SocketAddr,
}

/// Whether the end of a request comes.
#[derive(Clone, Copy)]
enum End {
    Comes,
    NeverComes,
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Attacker {
    /// Sends a request with these parts of a body, which ends with them or never. The answer is not read.
    fn send(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        parts: Vec<Bytes>,
        end: End,
    ) -> JoinHandle<Option<Incoming>> {
        let frames = futures::stream::iter(parts).map(|part| Ok(Frame::data(part)));
        let body = match end {
            End::Comes => BodyExt::boxed(StreamBody::new(frames)),
            End::NeverComes => BodyExt::boxed(StreamBody::new(frames.chain(futures::stream::pending()))),
        };
        let mut request = Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).unwrap();
        let answer = self.sender.send_request(request);
        tokio::spawn(async move { Some(answer.await.ok()?.into_body()) })
    }
}

/// The bytes that a flood sends at each step.
type Flood = Box<dyn Fn(u32) -> Vec<u8>>;

/// A message as gRPC sends it.
fn framed(message: &impl prost::Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend(u32::try_from(encoded.len()).unwrap().to_be_bytes());
    framed.extend(encoded);
    framed.into()
}

/// Waits until what was sent has come to the program and has been worked off: its memory no longer grows.
async fn settled(attacked: &Attacked) {
    let deadline = Instant::now() + PATIENCE;
    let mut last = 0;
    let mut unchanged = 0;
    while unchanged < 5 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = attacked.memory("VmHWM:");
        unchanged = if now == last { unchanged + 1 } else { 0 };
        last = now;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_token_hold_little() {
    let attacked = Attacked::start(&[]).await;
    let other = attacked.other_caller();
    let long = "x".repeat(14_000);
    let headers = [("x-request-id", "id"), ("x-long", long.as_str())];
    let mut attackers = Vec::new();
    let mut answers = Vec::new();
    for from in 1..=8 {
        let mut attacker = attacked.attacker(from).await;
        for index in 0..1000 {
            // One half watches, the other does not even say what it asks.
            let (path, parts, end) = if index % 2 == 0 {
                (WATCH, vec![Bytes::from_static(&[0; 5])], End::Comes)
            } else {
                (CHECK, Vec::new(), End::NeverComes)
            };
            answers.push(attacker.send(path, &headers, parts, end));
        }
        attackers.push(attacker);
    }
    settled(&attacked).await;
    // Where the attackers are quick and the program is not, all of a connection's metadata is there at once: 8 times 16 MiB.
    attacked.survives("8000 calls without a token", other, 192 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_token_keep_nobody_out() {
    let attacked = Attacked::start(&[("GRPC_MAX_CONNECTIONS", "256")]).await;
    let other = attacked.other_caller();
    let mut connections = Vec::new();
    for index in 0..1500_u32 {
        let mut stream = attacked.connect(1).await;
        // Some say nothing, some begin, and some go on to where calls could be made.
        let hello: &[u8] = match index % 3 {
            0 => b"",
            1 => b"PRI * HTTP/2.0",
            _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        };
        // It may have been closed already.
        let _ = stream.write_all(hello).await;
        connections.push(stream);
    }
    settled(&attacked).await;
    attacked
        .survives("1500 connections that say little", other, 32 * MIB)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_the_connection() {
    let attacked = Attacked::start(&[]).await;
    let other = attacked.other_caller();
    let hello = || b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let frame = move |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    };
    // A header that is in the table of all clients: `:method: POST`.
    let post: &[u8] = &[0x83];
    let (headers, reset, settings, ping, continuation) = (1, 3, 4, 6, 9);
    let floods: [(&str, Flood); 4] = [
        (
            "headers without an end",
            Box::new(move |index| match index {
                0 => frame(headers, 0, 1, post),
                _ => frame(continuation, 0, 1, &[0x83; 16 << 10]),
            }),
        ),
        (
            "streams that are broken off",
            Box::new(move |index| {
                let stream = index * 2 + 1;
                // `:method: POST`, `:scheme: http`, `:path: /`.
                let mut both = frame(headers, 4, stream, &[0x83, 0x86, 0x84]);
                both.extend(frame(reset, 0, stream, &[0, 0, 0, 8]));
                both
            }),
        ),
        ("pings", Box::new(move |_| frame(ping, 0, 0, &[7; 8]))),
        ("settings", Box::new(move |_| frame(settings, 0, 0, &[]))),
    ];
    for (name, flood) in floods {
        let mut sent = 0;
        for from in 1..=4 {
            let mut stream = attacked.connect(from).await;
            let mut bytes = hello();
            for index in 0..50_000 {
                bytes.extend(flood(index));
                if bytes.len() >= 64 << 10 {
                    let write = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&bytes)).await;
                    sent += bytes.len();
                    bytes.clear();
                    // It was closed, or nothing more is taken from one that does not read.
                    if !matches!(write, Ok(Ok(()))) || sent > 64 << 20 {
                        break;
                    }
                }
            }
            if name.contains("headers") || name.contains("streams") {
                let mut answer = [0; 4096];
                let closed = async { while matches!(stream.read(&mut answer).await, Ok(read) if read > 0) {} };
                let closed = tokio::time::timeout(PATIENCE, closed).await;
                assert!(closed.is_ok(), "a flood of {name} goes on");
            }
        }
        println!("{name}: {} KiB sent", sent >> 10);
    }
    settled(&attacked).await;
    attacked.survives("floods of frames", other, 32 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_the_size_limit_take_turns() {
    let attacked = Attacked::start(&[]).await;
    let other = attacked.other_caller();
    let token = attacked.token();
    let headers = [("jwt", token.as_str())];
    // All but the last byte comes, so that what came has to be kept.
    let records = vec![record("large", &"x".repeat((4 << 20) - 1024))];
    let message = framed(&PutRequest { records });
    let message = message.slice(..message.len() - 1);
    let mut attackers = Vec::new();
    let mut answers = Vec::new();
    for from in 1..=32 {
        let mut attacker = attacked.attacker(from).await;
        for _ in 0..8 {
            answers.push(attacker.send(PUT, &headers, vec![message.clone()], End::NeverComes));
        }
        attackers.push(attacker);
    }
    settled(&attacked).await;
    attacked
        .survives("256 unfinished requests of 4 MiB", other, (256 + 32 + 64) * MIB)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_idle_streams_hold_little_and_hear_the_news() {
    let attacked = Attacked::start(&[]).await;
    let other = attacked.other_caller();
    let mut client = attacked.client();
    let mut put = async |id: &str| {
        let records = vec![record(id, "")];
        client.put(PutRequest { records }).await.unwrap().into_inner()
    };
    let before = put("before").await;
    let token = attacked.token();
    let headers = [("jwt", token.as_str())];
    let request = framed(&SyncRequest {
        server_version: before.server_version,
        record_version: before.records[0].version,
        r#type: TYPE.to_owned(),
        wait: None,
    });
    let mut attackers = Vec::new();
    let mut answers = Vec::new();
    for from in 1..=4 {
        let mut attacker = attacked.attacker(from).await;
        for _ in 0..1000 {
            answers.push(attacker.send(SYNC, &headers, vec![request.clone()], End::Comes));
        }
        attackers.push(attacker);
    }
    settled(&attacked).await;
    put("the-news").await;
    let mut heard = 0;
    for answer in answers {
        let hears = async {
            let mut body = answer.await.unwrap().expect("the stream is answered");
            let mut bytes = Vec::new();
            while let Some(frame) = body.frame().await {
                bytes.extend(frame.unwrap().into_data().unwrap_or_default());
                if bytes.windows(8).any(|part| part == b"the-news") {
                    return true;
                }
            }
            false
        };
        let hears = tokio::time::timeout(PATIENCE, hears).await;
        heard += usize::from(hears.expect("a stream hears nothing"));
    }
    assert_eq!(heard, 4000);
    attacked.survives("4000 idle streams", other, 128 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_reads_hold_little() {
    for (name, count, length, streams, most) in [
        ("1000 unread streams of small records", 4000, 1000, 1000, 256 * MIB),
        (
            "300 unread streams of large records",
            4,
            1 << 20,
            300,
            (256 + 128) * MIB,
        ),
    ] {
        let mut attacked = Attacked::start(&[]).await;
        let mut client = attacked.client();
        let content = "x".repeat(length);
        let records: Vec<_> = (0..count).map(|index| record(&format!("{index}"), &content)).collect();
        for records in records.chunks(if length > 1000 { 1 } else { 1000 }) {
            let records = records.to_vec();
            client.put(PutRequest { records }).await.unwrap();
        }
        attacked.before = attacked.memory("VmHWM:");
        let other = attacked.other_caller();
        let token = attacked.token();
        let headers = [("jwt", token.as_str())];
        let request = framed(&SyncLatestRequest::default());
        let mut attackers = Vec::new();
        let mut answers = Vec::new();
        for from in 1..=4 {
            let mut attacker = attacked.attacker(from).await;
            for _ in 0..streams / 4 {
                answers.push(attacker.send(SYNC_LATEST, &headers, vec![request.clone()], End::Comes));
            }
            attackers.push(attacker);
        }
        settled(&attacked).await;
        let mut begun = 0;
        for answer in &mut answers {
            let answer = tokio::time::timeout(PATIENCE, answer)
                .await
                .expect("a stream is not answered");
            begun += usize::from(
                answer
                    .unwrap()
                    .is_some_and(|body| !hyper::body::Body::is_end_stream(&body)),
            );
        }
        assert!(begun > streams / 8, "{begun} streams have begun");
        attacked.survives(name, other, most).await;
    }
}
