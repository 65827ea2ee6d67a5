//! The real server in this process, on the hostile plugin: supervision, broker, gRPC and a socket. And what an operator
//! sees of it: the log and the metrics.

use std::fs;
use std::future::ready;
use std::io::{self, Read as _, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use databroker_host::backend::{Backend, StoreInfo};
use databroker_host::broker::{self, Broker};
use databroker_host::component::{
    self, Destination, Directory, Grants, Limits, OpenError, Origin, Resolver, Restarts, Source,
};
use databroker_host::data::Descriptors;
use databroker_host::grpc::auth::{Guard, METADATA_KEY, token};
use databroker_host::server::{self, ServerError};
use databroker_host::settings::SharedSecret;
use databroker_host::telemetry::Instruments;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long anything may take before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A client with a good token.
pub type Client = DataBrokerServiceClient<InterceptedService<Channel, Credentials>>;

/// Limits of which the first that a plugin reaches is the one of its row: on a busy machine, half a second of computing may
/// take ten times as long.
pub fn limits() -> Limits {
    Limits {
        memory_bytes: 256 << 20,
        compute: Duration::from_millis(500),
        turn: Duration::from_secs(10),
        call: Duration::from_secs(10),
        ..Limits::default()
    }
}

/// What a plugin is granted, and what is beside that.
pub struct Site {
    /// Has the plugin's compiled code, its directory, and what lies around it.
    folder: TempDir,
    /// Somebody who listens on all addresses of this machine.
    listener: std::net::TcpListener,
    /// Where a name leads that changes.
    changing: Changing,
}

impl Site {
    /// Makes a directory to be granted, with links that lead out of it, and listens.
    pub fn new() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        fs::create_dir_all(data.join("inner"))?;
        fs::write(data.join("file"), "content")?;
        fs::write(folder.path().join("secret"), "the host's")?;
        fs::write(folder.path().join("granted"), "granted\n")?;
        for (to, link) in [
            (Path::new("../secret"), "link"),
            (&folder.path().join("secret"), "absolute-link"),
            (Path::new(".."), "link-to-parent"),
            (Path::new("link"), "link-to-link"),
            (Path::new("/"), "inner/link-to-root"),
        ] {
            std::os::unix::fs::symlink(to, data.join(link))?;
        }
        let listener =
            std::net::TcpListener::bind(("::", 0)).or_else(|_| std::net::TcpListener::bind(("0.0.0.0", 0)))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            folder,
            listener,
            changing: Changing::new()?,
        })
    }

    /// Where compiled code is kept.
    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Where reports are kept.
    fn reports(&self) -> PathBuf {
        self.folder.path().join("reports")
    }

    /// The reports since the last time.
    pub fn take_reports(&self) -> Vec<String> {
        let files = fs::read_dir(self.reports()).into_iter().flatten();
        let paths = files.map(|file| file.expect("a file").path());
        let take = |path: PathBuf| {
            let text = fs::read_to_string(&path).expect("a report");
            fs::remove_file(path).expect("a report that can be removed");
            text
        };
        paths.map(take).collect()
    }

    /// True where nobody has connected.
    pub fn is_untouched(&self) -> bool {
        self.listener.accept().is_err()
            && self.changing.elsewhere.accept().is_err()
            && fs::read(self.folder.path().join("data/file")).is_ok_and(|content| content == b"content")
    }

    fn grants(&self, misbehaviour: &str) -> Grants {
        let port = self.listener.local_addr().expect("a port").port();
        // It leads to this machine itself, which only `localhost` may do.
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = name.trim().to_owned();
        let changing = self.changing.destination();
        let granted = format!("{}:{}", Changing::GRANTED, self.changing.port);
        let addresses = [format!("{name}:{port}"), changing.clone(), granted];
        let origins = [
            format!("http://{name}:{port}"),
            format!("https://{name}:{port}"),
            format!("http://{changing}"),
        ];
        Grants {
            settings: [
                ("misbehaviour", misbehaviour),
                ("port", &port.to_string()),
                ("name", &name),
                ("changing", &changing),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            secrets: [("granted".to_owned(), self.folder.path().join("granted"))].into(),
            directories: vec![Directory {
                inside: "/data".to_owned(),
                outside: self.folder.path().join("data"),
                writable: false,
            }],
            addresses: addresses.iter().flat_map(|text| Destination::parse(text)).collect(),
            http_origins: origins.iter().flat_map(|text| Origin::parse(text)).collect(),
            ..Grants::default()
        }
    }
}

/// A name that leads to a granted address at its first look-up, elsewhere at the next ones, and so on from the beginning.
struct Changing {
    /// Of all of its addresses.
    port: u16,
    /// Somebody who must not be reached.
    elsewhere: std::net::TcpListener,
    look_ups: Arc<AtomicUsize>,
}

impl Changing {
    const NAME: &str = "changes.example";

    /// The address that it may lead to, at which somebody answers.
    const GRANTED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

    /// What it leads to, one look-up after the other.
    const ANSWERS: [&[Ipv4Addr]; 4] = [
        &[Self::GRANTED],
        &[Ipv4Addr::LOCALHOST],
        &[Self::CREDENTIALS],
        &[Self::CREDENTIALS, Ipv4Addr::LOCALHOST, Self::GRANTED],
    ];

    const CREDENTIALS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

    fn new() -> io::Result<Self> {
        let elsewhere = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        elsewhere.set_nonblocking(true)?;
        let port = elsewhere.local_addr()?.port();
        let granted = std::net::TcpListener::bind((Self::GRANTED, port))?;
        std::thread::spawn(move || {
            for stream in granted.incoming() {
                // Who goes away without a word, or without the answer, has had what was to be had.
                let _ = stream.and_then(|mut stream| {
                    let asked = stream.read(&mut [0; 1024])?;
                    if asked == 0 {
                        return Ok(());
                    }
                    stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
                });
            }
        });
        Ok(Self {
            port,
            elsewhere,
            look_ups: Arc::default(),
        })
    }

    fn destination(&self) -> String {
        format!("{}:{}", Self::NAME, self.port)
    }

    /// Who answers for this name, and asks the system for all others.
    fn resolver(&self) -> Arc<Resolver> {
        let look_ups = Arc::clone(&self.look_ups);
        Arc::new(move |name: String| -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            if name == Self::NAME {
                let answer = Self::ANSWERS[look_ups.fetch_add(1, Ordering::Relaxed) % Self::ANSWERS.len()];
                return Box::pin(ready(Ok(answer.iter().copied().map(IpAddr::from).collect())));
            }
            Box::pin(async move {
                let found = tokio::net::lookup_host((name, 0)).await?;
                Ok(found.map(|address| address.ip()).collect())
            })
        })
    }
}

/// A store that was opened.
type Opened = (Arc<dyn Backend>, StoreInfo);

/// Opens a plugin, as the program would.
pub async fn open(
    plugin: &Path,
    misbehaviour: &str,
    connection_string: Option<String>,
    limits: Limits,
    site: &Site,
) -> Result<Opened, OpenError> {
    let config = component::Config {
        connection_string,
        cache_dir: Some(site.cache()),
        report_dir: Some(site.reports()),
        grants: site.grants(misbehaviour),
        limits,
        restarts: Restarts {
            shortest_pause: Duration::from_millis(10),
            ..Restarts::default()
        },
        ..component::Config::new(Source::File(plugin.to_owned()))
    };
    component::open_resolving(config, descriptors(), site.changing.resolver()).await
}

fn descriptors() -> Arc<Descriptors> {
    static DESCRIPTORS: LazyLock<Arc<Descriptors>> = LazyLock::new(|| Arc::new(Descriptors::built_in()));
    Arc::clone(&DESCRIPTORS)
}

/// A server that runs until it is stopped.
pub struct Stand {
    instruments: Instruments,
    address: SocketAddr,
    secret: SharedSecret,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), ServerError>>,
}

impl Stand {
    /// Serves an opened store on a free port of this machine.
    pub async fn start((backend, info): Opened) -> Self {
        let instruments = Instruments::default();
        let backend = instruments.measure(backend);
        let broker = Broker::start(backend, info, broker::Config::default(), descriptors())
            .await
            .expect("a broker");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("the port's number");
        let secret = SharedSecret::generate();
        let config = server::Config {
            guard: Guard::new(&secret, Arc::clone(&instruments.metrics)),
            grace_period: watch::channel(Duration::from_secs(10)).1,
            tls: None,
            limits: server::Limits {
                connections: 1000,
                streams: 1000,
            },
            calls: Default::default(),
            instruments: instruments.clone(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let signals = futures::stream::once(async {
            let _ = stopped.await;
        });
        let running = tokio::spawn(server::run(listener, broker, config, signals));
        Self {
            instruments,
            address,
            secret,
            stop,
            running,
        }
    }

    /// A client with a connection of its own.
    pub fn client(&self) -> Client {
        let channel = Endpoint::from_shared(format!("http://{}", self.address))
            .expect("an address")
            .connect_lazy();
        let token = token(&self.secret).expect("a token").try_into().expect("ASCII");
        DataBrokerServiceClient::with_interceptor(channel, Credentials(token))
    }

    /// The sum of all series whose name and labels begin like this; 0 where there is none.
    pub fn metric(&self, beginning: &str) -> f64 {
        let page = self.instruments.metrics.text().expect("a page");
        let values = page
            .lines()
            .filter(|line| line.starts_with(beginning))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        values.sum()
    }

    /// Shuts the server down, which says how that went.
    pub async fn stop(self) -> Result<(), ServerError> {
        let _ = self.stop.send(());
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .expect("the server does not end")
            .expect("the server panicked")
    }
}

/// Adds a token to each call.
#[derive(Clone)]
pub struct Credentials(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(METADATA_KEY, self.0.clone());
        Ok(request)
    }
}

/// All that is logged in this process.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Takes all that is logged from now on, by any thread.
    pub fn record() -> Self {
        let log = Self::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        log
    }

    /// What was logged since the last time.
    pub fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.0.lock().expect("a lock"));
        String::from_utf8(bytes).expect("the log is text")
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("a lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
