//! `pmp operator`: the operator's process. Arguments become [`controller::Options`], signals an orderly end.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, task::Poll, time::Duration};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    bus::{Auth, ConnectOptions, Secret, Tls},
    controller::{
        self, Options, Scope, Selector,
        call::{self, call},
        labels::LabelRules,
    },
    gateway::{
        health::{self, Heart},
        serve,
    },
    protocol::Prefix,
};

/// Exit codes of a process that would not wait for its own orderly end.
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

/// How long the sessions may take to store what they know after the first signal; a pod is given 30 s.
const DRAIN: Duration = Duration::from_secs(10);
/// For what is left of the runtime then.
const REST: Duration = Duration::from_secs(1);

/// Between two tries to reach the API server at the start.
const API_PAUSE: Duration = Duration::from_secs(2);
const API_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the operator: watches PhaseManifests and runs their sessions over NATS.
///
/// The first SIGTERM or SIGINT stores what is known and ends within 10 seconds; sessions go on under the next operator.
/// A second one ends at once.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    nats: NatsArgs,
    /// What stands before the session id in every subject
    #[arg(long, env = "PMP_SUBJECT_PREFIX", value_name = "PREFIX", default_value = "plan.session")]
    subject_prefix: String,
    /// Run the resources of this namespace only; default is all [repeatable]
    #[arg(long = "namespace", short, env = "PMP_NAMESPACES", value_name = "NAMESPACE", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Run only resources with these labels, as in kubectl --selector
    #[arg(long, env = "PMP_LABEL_SELECTOR", value_name = "SELECTOR")]
    label_selector: Option<String>,
    /// Let handlers put labels with this prefix; without a prefix they always may [repeatable]
    #[arg(long = "label-prefix", env = "PMP_LABEL_PREFIXES", value_name = "PREFIX", value_delimiter = ',')]
    label_prefixes: Vec<String>,
    /// Where /livez and /readyz answer; port 0 takes a free one, which the log names
    #[arg(long, env = "PMP_HEALTH_ADDR", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    health_addr: SocketAddr,
    /// How log lines are written to standard error; RUST_LOG says which
    #[arg(long, env = "PMP_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Reach the API server as this file says; default is KUBECONFIG, then the pod's own account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Of the kubeconfig, in place of its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

#[derive(Debug, clap::Args)]
struct NatsArgs {
    /// Where NATS is: nats://host:4222, tls://host [repeatable]
    #[arg(
        long = "nats-url",
        env = "NATS_URL",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "nats://127.0.0.1:4222"
    )]
    urls: Vec<String>,
    /// User name; needs a password
    #[arg(long = "nats-user", env = "NATS_USER", value_name = "NAME")]
    user: Option<String>,
    /// Of the user; better in a file, since arguments are seen by everyone on the machine
    #[arg(long = "nats-password", env = "NATS_PASSWORD", value_name = "TEXT", hide_env_values = true)]
    password: Option<String>,
    /// Read again at every connect, as are all files here
    #[arg(long = "nats-password-file", env = "NATS_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// In place of user and password
    #[arg(long = "nats-token", env = "NATS_TOKEN", value_name = "TEXT", hide_env_values = true)]
    token: Option<String>,
    /// The same in a file
    #[arg(long = "nats-token-file", env = "NATS_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A .creds file: JWT and seed
    #[arg(long = "nats-creds", env = "NATS_CREDS", value_name = "FILE")]
    creds: Option<PathBuf>,
    /// The seed of an nkey
    #[arg(long = "nats-nkey", env = "NATS_NKEY", value_name = "SEED", hide_env_values = true)]
    nkey: Option<String>,
    /// The same in a file
    #[arg(long = "nats-nkey-file", env = "NATS_NKEY_FILE", value_name = "FILE")]
    nkey_file: Option<PathBuf>,
    /// Roots in place of the platform's, PEM
    #[arg(long = "nats-ca", env = "NATS_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Client certificate, PEM
    #[arg(long = "nats-cert", env = "NATS_CERT", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Key of the client certificate, PEM
    #[arg(long = "nats-key", env = "NATS_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Shake hands before the server's greeting (handshake_first there)
    #[arg(long = "nats-tls-first", env = "NATS_TLS_FIRST")]
    tls_first: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    /// One object a line
    Json,
}

impl Args {
    /// Starts the log: `RUST_LOG` as usual, without it what an operator of the operator wants to see.
    pub fn start_log(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => log.init(),
            LogFormat::Json => log.json().init(),
        }
    }
}

/// Runs until a signal, or until the operator cannot go on.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let tokio = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let ended = tokio.block_on(live(args));
    tokio.shutdown_timeout(REST);
    ended
}

/// Health answers from the first moment to the last, so that whoever watches sees the whole life of the process.
async fn live(args: &Args) -> anyhow::Result<ExitCode> {
    let mut signals = signals()?;
    let (heart, stop, dead) = (Heart::new(), CancellationToken::new(), CancellationToken::new());
    let listener = serve::bind(args.health_addr).await.context("cannot answer health checks")?;
    let address = listener.local_addr().context("cannot answer health checks")?;
    tracing::info!(%address, "health checks are answered");
    let health = tokio::spawn(health::answer(listener, heart.clone(), dead.clone()));
    let work = operate(args, heart.clone(), stop.clone());
    tokio::pin!(work);
    let ended = tokio::select! {
        ended = &mut work => ended,
        Some(_) = signals.next() => {
            tracing::info!("stopping");
            heart.stop();
            stop.cancel();
            tokio::select! {
                ended = &mut work => ended,
                () = sleep(DRAIN) => {
                    tracing::error!("not everything was stored in time; the next operator asks the runtimes");
                    return Ok(ExitCode::FAILURE);
                }
                Some(code) = signals.next() => return Ok(ExitCode::from(code)),
            }
        }
    };
    dead.cancel();
    health.await.context("the answers to health checks ended early")?;
    ended.map(|()| ExitCode::SUCCESS)
}

async fn operate(args: &Args, heart: Heart, stop: CancellationToken) -> anyhow::Result<()> {
    match stop.run_until_cancelled(options(args, heart)).await {
        Some(options) => controller::run(options?, stop).await.context("the operator cannot go on"),
        None => Ok(()),
    }
}

/// Everything but the API server is judged first: a wrong argument is told at once.
async fn options(args: &Args, heart: Heart) -> anyhow::Result<Options> {
    let prefix = Prefix::new(&args.subject_prefix).context("--subject-prefix")?;
    let selector = match args.label_selector.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => Some(Selector::new(text).context("--label-selector")?),
        None => None,
    };
    let labels = LabelRules {
        prefixes: filled(&args.label_prefixes),
        reserved: selector.as_ref().map(Selector::keys).unwrap_or_default(),
    };
    let bus = args.nats.options()?;
    let scope = Scope::of(filled(&args.namespaces));
    let client = client(args).await?;
    let origin = cluster_id(&client).await?;
    let process = process_name();
    tracing::info!(origin, process, "the API server answers");
    Ok(Options { client, bus, prefix, origin, process, scope, selector, labels, heart })
}

/// An environment variable that is set to nothing is a list of one empty text.
fn filled(texts: &[String]) -> Vec<String> {
    texts.iter().filter(|text| !text.is_empty()).cloned().collect()
}

impl NatsArgs {
    fn options(&self) -> anyhow::Result<ConnectOptions> {
        let mut options = ConnectOptions::new(filled(&self.urls));
        "pmp-operator".clone_into(&mut options.name);
        options.auth = self.auth()?;
        options.tls = Tls {
            required: self.ca.is_some() || self.cert.is_some() || self.tls_first,
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
            first: self.tls_first,
        };
        Ok(options)
    }

    fn auth(&self) -> anyhow::Result<Auth> {
        let password = secret("--nats-password", self.password.as_ref(), self.password_file.as_ref())?;
        let token = secret("--nats-token", self.token.as_ref(), self.token_file.as_ref())?;
        let nkey = secret("--nats-nkey", self.nkey.as_ref(), self.nkey_file.as_ref())?;
        let user = match (&self.user, password) {
            (Some(name), Some(password)) => Some(Auth::User { name: Secret::Text(name.clone()), password }),
            (Some(_), None) => bail!("--nats-user needs --nats-password or --nats-password-file"),
            (None, Some(_)) => bail!("--nats-password needs --nats-user"),
            (None, None) => None,
        };
        let creds = self.creds.clone().map(|file| Auth::Credentials(Secret::File(file)));
        let mut given = [user, token.map(Auth::Token), nkey.map(Auth::Nkey), creds].into_iter().flatten();
        let auth = given.next().unwrap_or_default();
        if given.next().is_some() {
            bail!("give one way to log in to NATS: user and password, token, nkey or creds");
        }
        Ok(auth)
    }
}

fn secret(flag: &str, text: Option<&String>, file: Option<&PathBuf>) -> anyhow::Result<Option<Secret>> {
    match (text.filter(|text| !text.is_empty()), file) {
        (Some(_), Some(_)) => bail!("give {flag} or {flag}-file, not both"),
        (Some(text), None) => Ok(Some(Secret::Text(text.clone()))),
        (None, file) => Ok(file.cloned().map(Secret::File)),
    }
}

async fn client(args: &Args) -> anyhow::Result<Client> {
    let mut config = if args.kubeconfig.is_some() || args.context.is_some() {
        let kubeconfig = match &args.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let wish = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        Config::from_custom_kubeconfig(kubeconfig.context("cannot read the kubeconfig")?, &wish)
            .await
            .context("cannot use the kubeconfig")?
    } else {
        Config::infer().await.context("cannot find the API server: give --kubeconfig, or run in a pod")?
    };
    // Whoever calls knows better when to try again, and has a deadline of its own.
    config.default_retry = false;
    config.connect_timeout = Some(API_CONNECT_TIMEOUT);
    Client::try_from(config).context("cannot speak to the API server")
}

/// The uid of kube-system, which no two clusters share and no upgrade changes; where that may not be read, of default.
///
/// Waits for the API server, since a restart would only wait too.
async fn cluster_id(client: &Client) -> anyhow::Result<String> {
    let api: Api<Namespace> = Api::all(client.clone());
    loop {
        let mut refusal = None;
        for name in ["kube-system", "default"] {
            match call("read a namespace for its uid", api.get(name)).await {
                Ok(found) => match found.metadata.uid {
                    Some(uid) => return Ok(uid),
                    None => bail!("the namespace {name} has no uid"),
                },
                Err(error) => refusal = Some(error),
            }
        }
        match refusal {
            Some(error) if is_worth_waiting(&error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the API server does not answer yet");
                sleep(API_PAUSE).await;
            }
            Some(error) => {
                return Err(error)
                    .context("cannot tell clusters apart: grant get on the namespaces kube-system or default");
            }
            None => bail!("the cluster has no namespaces"),
        }
    }
}

/// A server that is just starting knows neither namespaces nor rights.
fn is_worth_waiting(error: &call::Error) -> bool {
    !error.is_final()
}

/// `<host>-<random>`: the host is the pod's name, the rest keeps a restarted container apart from its last life.
fn process_name() -> String {
    let host = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "pmp".to_owned());
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')).take(100).collect();
    format!("{host}-{:08x}", rand::random::<u32>())
}

/// SIGINT and SIGTERM as the exit codes that a process has that ends by them.
fn signals() -> anyhow::Result<impl Stream<Item = u8> + Unpin> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    Ok(stream::poll_fn(move |cx| {
        if interrupt.poll_recv(cx).is_ready() {
            return Poll::Ready(Some(INTERRUPTED));
        }
        terminate.poll_recv(cx).map(|_| Some(TERMINATED))
    }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn auth(arguments: &[&str]) -> anyhow::Result<Auth> {
        let line = Line::parse_from([&["operator"], arguments].concat());
        line.args.nats.auth()
    }

    #[test]
    fn each_way_to_log_in_is_taken_and_two_at_once_are_not() {
        assert!(matches!(auth(&[]), Ok(Auth::None)));
        assert!(matches!(auth(&["--nats-user=a", "--nats-password=b"]), Ok(Auth::User { .. })));
        assert!(matches!(auth(&["--nats-token-file=t"]), Ok(Auth::Token(Secret::File(_)))));
        assert!(matches!(auth(&["--nats-creds=c"]), Ok(Auth::Credentials(_))));
        assert!(matches!(auth(&["--nats-nkey=SU"]), Ok(Auth::Nkey(Secret::Text(_)))));
        assert!(auth(&["--nats-token=t", "--nats-creds=c"]).is_err());
        assert!(auth(&["--nats-token=t", "--nats-token-file=f"]).is_err());
        assert!(auth(&["--nats-user=a"]).is_err());
        assert!(auth(&["--nats-password=b"]).is_err());
    }

    #[test]
    fn a_certificate_without_its_key_is_no_command_line() {
        assert!(Line::try_parse_from(["operator", "--nats-cert=c"]).is_err());
        assert!(Line::try_parse_from(["operator", "--nats-cert=c", "--nats-key=k"]).is_ok());
    }

    #[test]
    fn two_lives_of_a_process_have_two_names() {
        assert_ne!(process_name(), process_name());
    }
}
