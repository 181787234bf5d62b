//! A real nats-server, shared and open, or a test's own with users, tokens, keys or TLS.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

use super::{Authority, Identity, Process, START_DEADLINE, Signal, eventually, ports, scratch, tool};

/// Whether the server has TLS, and asks its clients for certificates.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    Off,
    Server,
    Mutual,
    /// As `Server`, but the server waits for the handshake and greets nobody before it.
    First,
}

/// What a server is to be like; open, with JetStream, without TLS unless told otherwise.
pub struct NatsConfig {
    settings: Map<String, Value>,
    jetstream: bool,
    tls: Tls,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self { settings: Map::new(), jetstream: true, tls: Tls::Off }
    }
}

impl NatsConfig {
    /// A server that only passes messages on and stores none.
    pub fn without_jetstream(mut self) -> Self {
        self.jetstream = false;
        self
    }

    /// A certificate for the server, and with `Mutual` one for its clients.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Who may do what, as in the server's own configuration: `{"token": ..}`, or `{"users": [{"user", "password",
    /// "permissions": {"publish": {"allow": [..]}, "subscribe": {"allow": [..]}}}, {"nkey": ..}]}`.
    pub fn authorization(self, authorization: Value) -> Self {
        self.setting("authorization", authorization)
    }

    /// Any other setting of the server by its own name.
    pub fn setting(mut self, name: &str, value: Value) -> Self {
        self.settings.insert(name.to_owned(), value);
        self
    }
}

/// A server that can be stopped and started again on the same port with the same store. Dropping it ends it.
pub struct Nats {
    pub url: String,
    /// The authority behind the server's certificate, with TLS.
    pub authority: Option<PathBuf>,
    /// A client's certificate that the server takes, with mutual TLS.
    pub identity: Option<Identity>,
    port: u16,
    greets: bool,
    config: PathBuf,
    process: Mutex<Option<Process>>,
}

/// The open server of this test binary; tests keep apart by their subjects.
pub async fn shared_nats() -> &'static Nats {
    static SHARED: OnceCell<Nats> = OnceCell::const_new();
    SHARED.get_or_init(|| nats(NatsConfig::default())).await
}

/// A server of the test's own, ready for connections.
pub async fn nats(config: NatsConfig) -> Nats {
    let dir = scratch("nats");
    let port = ports::free_port();
    let mut settings = config.settings;
    settings.insert("listen".to_owned(), json!(format!("127.0.0.1:{port}")));
    if config.jetstream {
        // Streams set their largest size aside, and every test has its own: more than a small disk has, though none fills it.
        let store = json!({"store_dir": dir.join("store"), "max_file_store": 1_u64 << 44});
        settings.insert("jetstream".to_owned(), store);
    }
    let mut server = Nats {
        url: format!("nats://127.0.0.1:{port}"),
        authority: None,
        identity: None,
        port,
        greets: config.tls != Tls::First,
        config: dir.join("nats.conf"),
        process: Mutex::new(None),
    };
    if config.tls != Tls::Off {
        let authority = Authority::new(&dir);
        let own = authority.server("nats-server");
        let mutual = config.tls == Tls::Mutual;
        settings.insert(
            "tls".to_owned(),
            json!({"cert_file": own.certificate, "key_file": own.key, "ca_file": authority.certificate, "verify": mutual,
                "handshake_first": config.tls == Tls::First}),
        );
        server.identity = mutual.then(|| authority.client("nats-client", "test bed"));
        server.authority = Some(authority.certificate);
    }
    // The server's configuration language is a superset of JSON.
    let text = serde_json::to_string_pretty(&settings).expect("a map of JSON values is JSON");
    fs::write(&server.config, text).expect("the scratch directory was just made");
    server.start().await;
    server
}

impl Nats {
    /// Starts it, after a stop on the same port with the same store, and returns when it takes connections.
    pub async fn start(&self) {
        let mut command = Command::new(tool("nats-server"));
        command.arg("-c").arg(&self.config);
        *self.slot() = Some(Process::start("nats-server", &command));
        eventually(START_DEADLINE, "nats-server takes connections", async || {
            let mut slot = self.slot();
            let process = slot.as_mut().expect("it was started just above");
            assert!(process.exit_code().is_none(), "ended at its start: {}", process.tail());
            takes_connections(self.port, self.greets).then_some(())
        })
        .await;
    }

    /// Changes a setting of its configuration, or takes it away; for the next start.
    pub fn configure(&self, name: &str, value: Option<Value>) {
        let text = fs::read_to_string(&self.config).expect("it was written before the first start");
        let mut settings: Map<String, Value> = serde_json::from_str(&text).expect("it was written as JSON");
        match value {
            Some(value) => drop(settings.insert(name.to_owned(), value)),
            None => drop(settings.remove(name)),
        }
        let text = serde_json::to_string_pretty(&settings).expect("a map of JSON values is JSON");
        fs::write(&self.config, text).expect("it was written before");
    }

    /// Ends it as an administrator does; it says goodbye to its clients and keeps its store.
    pub async fn stop(&self) {
        let mut process = self.slot().take().expect("only a running server is stopped");
        process.signal(Signal::TERM);
        process.wait(Duration::from_secs(30)).await;
    }

    /// Ends it as a crash does.
    pub fn kill(&self) {
        drop(self.slot().take());
    }

    /// Sends the server a signal, such as STOP to make it hang and CONT to let it go on.
    pub fn signal(&self, signal: Signal) {
        self.slot().as_mut().expect("only a running server is sent a signal").signal(signal);
    }

    /// Takes up a changed configuration as an administrator does it: connections stay.
    pub fn reload(&self) {
        self.signal(Signal::HUP);
    }

    /// Throws away all that JetStream has stored, as a lost disk does. Only while the server is not running.
    pub fn wipe_store(&self) {
        assert!(self.slot().is_none(), "a running server writes its store anew");
        fs::remove_dir_all(self.config.with_file_name("store")).expect("a server with JetStream has a store");
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.slot().as_ref().expect("only a running server has a process id").pid()
    }

    /// What the server has logged since its last start.
    pub fn log(&self) -> String {
        self.slot().as_ref().map(Process::stderr).unwrap_or_default()
    }

    /// A new connection, with these credentials and whatever the server's TLS asks for.
    pub async fn connect(&self, mut options: ConnectOptions) -> Result<Client, async_nats::ConnectError> {
        if let Some(authority) = &self.authority {
            options = options.require_tls(true).add_root_certificates(authority.clone());
        }
        if let Some(identity) = &self.identity {
            options = options.add_client_certificate(identity.certificate.clone(), identity.key.clone());
        }
        options.connect(&self.url).await
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server speaks first on every connection, TLS or not, unless it was told to wait; a listening socket alone says
/// little.
fn takes_connections(port: u16, greets: bool) -> bool {
    let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    if !greets {
        return true;
    }
    let patience = Some(Duration::from_secs(2));
    let mut line = String::new();
    stream.set_read_timeout(patience).is_ok()
        && BufReader::new(stream).read_line(&mut line).is_ok()
        && line.starts_with("INFO ")
}
