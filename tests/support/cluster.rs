//! The real API server: etcd and kube-apiserver with RBAC, one pair a test binary, and ways to ask them.
//!
//! No controllers run: a deleted namespace would stay Terminating for ever, so tests make namespaces and leave them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{Authority, Process, START_DEADLINE, Signal, eventually, ports, scratch, tool, unique};

/// How often a start is tried again with other ports because somebody took one in between.
const STARTS_MAX: usize = 5;
const KUBECTL_DEADLINE: Duration = Duration::from_mins(1);

/// The test's view of the cluster: a client of its own, because a client dies with the runtime of the test that made it.
pub struct Cluster {
    /// May do everything.
    pub client: kube::Client,
    /// The same access for other programs.
    pub kubeconfig: PathBuf,
    servers: Arc<Servers>,
}

struct Servers {
    url: String,
    authority: PathBuf,
    kubeconfig: PathBuf,
    // Both are held so that they end with the test binary.
    api: Mutex<Process>,
    etcd: Mutex<Process>,
    api_command: Command,
    etcd_command: Command,
}

/// Whether etcd waits for its disk.
static ON_DISK: AtomicBool = AtomicBool::new(false);

/// From now on etcd waits for its disk at every write, as it does in production: for whoever measures.
#[allow(dead_code, reason = "tests have no use for it, the bench has")]
pub fn keep_on_disk() {
    ON_DISK.store(true, Ordering::Relaxed);
}

/// The cluster of this test binary, started by whoever asks first.
pub async fn cluster() -> Cluster {
    // A failure is kept too: the second test would wait as long only to hear the same.
    static SERVERS: OnceCell<Result<Arc<Servers>, String>> = OnceCell::const_new();
    let servers = SERVERS.get_or_init(async || start().await.map(Arc::new)).await.clone();
    Cluster::of(servers).await
}

/// A cluster of the test's own, for those that take the API server away; it costs some seconds and 350 MiB.
pub async fn own_cluster() -> OwnCluster {
    OwnCluster(Cluster::of(start().await.map(Arc::new)).await)
}

/// A cluster whose servers may be killed, since nobody else has an eye on them.
pub struct OwnCluster(Cluster);

impl Deref for OwnCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl OwnCluster {
    /// Ends the API server as a crash does; etcd keeps what was stored.
    pub fn kill_api_server(&self) {
        self.api().kill();
    }

    /// Sends the API server a signal, such as STOP to make it hang and CONT to let it go on.
    pub fn signal_api_server(&self, signal: Signal) {
        self.api().signal(signal);
    }

    /// Starts the API server again at the same address, and returns when it is ready.
    pub async fn start_api_server(&self) {
        *self.api() = Process::start("kube-apiserver", &self.0.servers.api_command);
        self.until_ready().await;
    }

    /// Ends etcd as a crash does; its directory stays.
    pub fn kill_etcd(&self) {
        self.etcd().kill();
    }

    /// Sends etcd a signal, such as STOP to make it hang and CONT to let it go on.
    pub fn signal_etcd(&self, signal: Signal) {
        self.etcd().signal(signal);
    }

    /// Starts etcd again at the same address with the same directory, and returns when the API server is ready, which
    /// asks it.
    pub async fn start_etcd(&self) {
        *self.etcd() = Process::start("etcd", &self.0.servers.etcd_command);
        self.until_ready().await;
    }

    async fn until_ready(&self) {
        eventually(START_DEADLINE, "kube-apiserver is ready again", async || {
            for mut server in [self.etcd(), self.api()] {
                assert!(server.exit_code().is_none(), "ended at its start: {}", server.tail());
            }
            answers_ready(&self.0.client).await.then_some(())
        })
        .await;
    }

    fn api(&self) -> MutexGuard<'_, Process> {
        self.0.servers.api.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn etcd(&self) -> MutexGuard<'_, Process> {
        self.0.servers.etcd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    async fn of(servers: Result<Arc<Servers>, String>) -> Self {
        let servers = servers.unwrap_or_else(|reason| panic!("no cluster: {reason}"));
        let client = client_of(&servers.kubeconfig).await;
        Self { client, kubeconfig: servers.kubeconfig.clone(), servers }
    }

    /// Makes a namespace of this test's own.
    pub async fn namespace(&self, prefix: &str) -> String {
        let name = unique(prefix);
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.create(&PostParams::default(), &namespace).await.expect("a new namespace is taken");
        name
    }

    /// Runs kubectl as administrator and returns when it has ended.
    pub async fn kubectl(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(tool("kubectl"));
        // By the environment: kubectl takes no flags before the name of a plugin.
        command.env("KUBECONFIG", &self.kubeconfig);
        command.env("KUBECACHEDIR", self.kubeconfig.with_file_name("kubectl-cache"));
        command.args(arguments).kill_on_drop(true);
        tokio::time::timeout(KUBECTL_DEADLINE, command.output())
            .await
            .unwrap_or_else(|_| panic!("kubectl {arguments:?} has not ended within {KUBECTL_DEADLINE:?}"))
            .expect("kubectl can be started")
    }

    /// Makes a ServiceAccount and gives a token of its own, for one hour, as a pod would get.
    pub async fn service_account_token(&self, namespace: &str, name: &str) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        match accounts.create(&PostParams::default(), &account).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => panic!("cannot make the service account {namespace}/{name}: {error}"),
        }
        let wish = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() },
            ..TokenRequest::default()
        };
        let granted = accounts.create_token_request(name, &PostParams::default(), &wish).await;
        granted.expect("the API server signs tokens").status.expect("a granted token has a status").token
    }

    /// Makes a ServiceAccount and writes a kubeconfig with its token, in which `namespace` is the current one.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> PathBuf {
        let token = self.service_account_token(namespace, name).await;
        let path = scratch("service-account").join("kubeconfig");
        let server = json!({"server": self.servers.url, "certificate-authority": self.servers.authority});
        write_kubeconfig(&path, &server, namespace, &json!({"token": token}));
        path
    }

    /// An administrator's kubeconfig that leads to this address on loopback, behind which the API server is.
    pub fn kubeconfig_through(&self, address: SocketAddr) -> PathBuf {
        let text = fs::read_to_string(&self.kubeconfig).expect("the harness wrote this kubeconfig");
        let path = scratch("through").join("kubeconfig");
        fs::write(&path, text.replace(&self.servers.url, &format!("https://{address}"))).expect("scratch is writable");
        path
    }

    /// Where the API server listens.
    pub fn address(&self) -> SocketAddr {
        let address = self.servers.url.trim_start_matches("https://");
        address.parse().expect("the harness gave it an address on loopback")
    }

    /// A client with the rights of a ServiceAccount and no others.
    pub async fn service_account_client(&self, namespace: &str, name: &str) -> kube::Client {
        client_of(&self.service_account_kubeconfig(namespace, name).await).await
    }
}

async fn client_of(kubeconfig: &Path) -> kube::Client {
    let text = Kubeconfig::read_from(kubeconfig).expect("the harness wrote this kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await;
    kube::Client::try_from(config.expect("the kubeconfig is complete")).expect("the certificates are readable")
}

async fn start() -> Result<Servers, String> {
    let mut outcome = try_start().await;
    for _ in 1..STARTS_MAX {
        match outcome {
            Err(reason) if reason.contains("address already in use") => outcome = try_start().await,
            _ => break,
        }
    }
    outcome
}

async fn try_start() -> Result<Servers, String> {
    let dir = scratch("cluster");
    let etcd_port = ports::free_port();
    let etcd_command = etcd_command(&dir, etcd_port, ports::free_port());
    let mut etcd = Process::start("etcd", &etcd_command);
    ready(&mut etcd, "etcd listens", async || listens(etcd_port)).await?;

    let authority = Authority::new(&dir);
    let port = ports::free_port();
    let url = format!("https://127.0.0.1:{port}");
    let admin = authority.client("admin", "system:masters");
    let kubeconfig = dir.join("kubeconfig");
    let credentials = json!({"client-certificate": admin.certificate, "client-key": admin.key});
    let server = json!({"server": url, "certificate-authority": authority.certificate});
    write_kubeconfig(&kubeconfig, &server, "default", &credentials);
    let api_command = api_server_command(&dir, port, etcd_port, &authority);
    let mut api = Process::start("kube-apiserver", &api_command);
    ready(&mut api, "kube-apiserver listens", async || listens(port)).await?;
    let client = client_of(&kubeconfig).await;
    ready(&mut api, "kube-apiserver is ready", async || answers_ready(&client).await).await?;
    let (api, etcd) = (Mutex::new(api), Mutex::new(etcd));
    Ok(Servers { url, authority: authority.certificate, kubeconfig, api, etcd, api_command, etcd_command })
}

fn etcd_command(dir: &Path, port: u16, peer_port: u16) -> Command {
    let mut command = Command::new(tool("etcd"));
    let client_url = format!("http://127.0.0.1:{port}");
    let peer_url = format!("http://127.0.0.1:{peer_port}");
    command.arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
    command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
    command.args(["--initial-cluster", &format!("default={peer_url}")]);
    command.args(["--log-level", "warn"]);
    if !ON_DISK.load(Ordering::Relaxed) {
        // The data dies with the test; what a power failure would leave of it does not matter.
        command.arg("--unsafe-no-fsync");
    }
    command
}

fn api_server_command(dir: &Path, port: u16, etcd_port: u16, authority: &Authority) -> Command {
    let server = authority.server("kube-apiserver");
    let tokens = authority.server("service-account-tokens");
    let mut command = Command::new(tool("kube-apiserver"));
    let mut flag = |name: &str, value: &Path| {
        command.arg(format!("--{name}")).arg(value);
    };
    flag("cert-dir", &dir.join("certificates"));
    flag("client-ca-file", &authority.certificate);
    flag("tls-cert-file", &server.certificate);
    flag("tls-private-key-file", &server.key);
    flag("service-account-key-file", &tokens.certificate);
    flag("service-account-signing-key-file", &tokens.key);
    command.args(["--service-account-issuer", "https://kubernetes.default.svc"]);
    command.args(["--etcd-servers", &format!("http://127.0.0.1:{etcd_port}")]);
    command.args(["--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1"]);
    command.args(["--secure-port", &port.to_string(), "--service-cluster-ip-range", "10.0.0.0/24"]);
    command.args(["--authorization-mode", "RBAC", "--allow-privileged=true"]);
    // Without a controller manager nobody makes a namespace's default ServiceAccount, nor any endpoints.
    command.args(["--disable-admission-plugins", "ServiceAccount", "--endpoint-reconciler-type", "none"]);
    command
}

/// Waits until `ask` says yes; an `Err` holds what the process said when it ended instead.
async fn ready(process: &mut Process, what: &str, mut ask: impl AsyncFnMut() -> bool) -> Result<(), String> {
    eventually(START_DEADLINE, what, async || {
        if process.exit_code().is_some() {
            return Some(Err(format!("ended at its start: {}", process.tail())));
        }
        ask().await.then_some(Ok(()))
    })
    .await
}

fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// One look at /readyz, bounded, since a server that is not ready may also not answer.
async fn answers_ready(client: &kube::Client) -> bool {
    let request = axum::http::Request::get("/readyz").body(Vec::new()).expect("the request is a constant");
    let answer = tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await;
    matches!(answer, Ok(Ok(text)) if text == "ok")
}

/// `server` and `credentials` are the `cluster` and the `user` of the only context.
pub(super) fn write_kubeconfig(path: &Path, server: &Value, namespace: &str, credentials: &Value) {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": server}],
        "users": [{"name": "user", "user": credentials}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "user", "namespace": namespace}}],
        "current-context": "testbed",
    });
    // JSON is YAML.
    fs::write(path, config.to_string()).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
